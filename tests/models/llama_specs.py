"""The small models of the architectures that run as Llama does, with something more; see `tests.models.specs`."""

from __future__ import annotations

from gguf.constants import LlamaFileType

from tests.bench.model_specs import CHATML, ModelSpec, TensorSpec, norm
from tests.models.layers import (
    CONTEXT_LENGTH,
    HEAD_DIM,
    HIDDEN,
    attention,
    embedding_and_head,
    glm4_layer,
    keys,
    llama_layer,
    matrix,
    mixture,
    phi3_layer,
    shared_expert,
    tied,
)
from tests.models.vocabularies import byte_level, sentencepiece

LLAMA2_CHAT = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST]{{ message.content }}[/INST]"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GRANITE_CHAT = (
    "{% for message in messages %}<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content }}"
    "<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
GLM4_CHAT = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PHI4_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}<|im_sep|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
LENGTHS = {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}


def qwen3moe_q4_0() -> ModelSpec:
    """Qwen3-MoE: as Qwen3, with eight experts of which three are used."""
    words = byte_level("qwen2", "<|endoftext|>", "<|im_start|>", "<|im_end|>", defined=("<think>", "</think>"))
    vocab_size = len(words.tokens)
    tensors = [
        *embedding_and_head(vocab_size, "Q4_0", "Q8_0"),
        *attention("blk.0", "Q4_0", heads=4, head_norms=True),
        *mixture("blk.0", "Q4_0", "Q8_0", 32, 8),
        *attention("blk.1", "Q4_0", heads=4, head_norms=True),
        *mixture("blk.1", "Q4_0", "Q5_0", 32, 8),
        norm("output_norm", HIDDEN),
    ]
    experts = {"expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32}
    settings = keys(96, 4, 2) | LENGTHS | experts | {"rope.freq_base": 1e6}
    ids = {"bos": vocab_size - 5, "eos": vocab_size - 3, "padding": vocab_size - 5, "add_bos": False}
    return ModelSpec("qwen3moe", "Small Qwen3-MoE", LlamaFileType.MOSTLY_Q4_0, settings, words, ids, CHATML, tensors)


def qwen2moe_q5_1() -> ModelSpec:
    """Qwen1.5-MoE: four experts, two used as a softmax over all weighs them, and a shared one that is gated."""
    words = byte_level("qwen2", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocab_size = len(words.tokens)

    def layer(name: str) -> list[TensorSpec]:
        return [
            *attention(name, "Q5_1", bias=True),
            *mixture(name, "Q5_1", "Q8_0", 32, 4),
            *shared_expert(name, "Q5_1", "Q8_0", 96),
        ]

    tensors = [
        *embedding_and_head(vocab_size, "Q5_1", "Q8_0"),
        *layer("blk.0"),
        *layer("blk.1"),
        norm("output_norm", HIDDEN),
    ]
    experts = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    settings = keys(96, 2, 1) | experts | {"expert_shared_feed_forward_length": 96, "rope.freq_base": 1e6}
    ids = {"bos": vocab_size - 3, "eos": vocab_size - 1, "padding": vocab_size - 3, "add_bos": False}
    return ModelSpec("qwen2moe", "Small Qwen2-MoE", LlamaFileType.MOSTLY_Q5_1, settings, words, ids, CHATML, tensors)


def mixtral_q5_0() -> ModelSpec:
    """Mixtral: Llama with four experts, of which two are used; no key of its own says how wide they are."""
    words = sentencepiece()
    tensors = [
        *embedding_and_head(len(words.tokens), "Q5_0", "Q8_0"),
        *attention("blk.0", "Q5_0"),
        *mixture("blk.0", "Q5_0", "Q5_0", 32, 4),
        *attention("blk.1", "Q5_0"),
        *mixture("blk.1", "Q5_0", "Q5_0", 32, 4),
        norm("output_norm", HIDDEN),
    ]
    rope = {"rope.dimension_count": HEAD_DIM, "rope.freq_base": 1e6}
    settings = keys(32, 2, 1) | rope | {"expert_count": 4, "expert_used_count": 2}
    ids = {"bos": 1, "eos": 2, "unknown": 0, "add_bos": True, "add_eos": False}
    return ModelSpec("llama", "Small Mixtral", LlamaFileType.MOSTLY_Q5_0, settings, words, ids, LLAMA2_CHAT, tensors)


def mistral3_q8_0() -> ModelSpec:
    """Ministral 3: YaRN, whose attention factor is divided out, and queries that grow every 32 tokens."""
    words = byte_level("tekken", "<unk>", "<s>", "</s>", "[INST]", "[/INST]")
    vocab_size = len(words.tokens)
    tensors = [
        *tied(vocab_size, "Q8_0"),
        *llama_layer("blk.0", "Q8_0", "Q8_0", 64),
        *llama_layer("blk.1", "Q8_0", "Q8_0", 64),
        norm("output_norm", HIDDEN),
    ]
    rope = {
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": 1e6,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 16.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_log_multiplier": 1.0,
        "attention.temperature_scale": 0.3,
    }
    settings = keys(64, 2, 1) | LENGTHS | rope
    ids = {"bos": vocab_size - 4, "eos": vocab_size - 3, "unknown": vocab_size - 5, "add_bos": True}
    return ModelSpec(
        "mistral3", "Small Ministral 3", LlamaFileType.MOSTLY_Q8_0, settings, words, ids, MISTRAL_CHAT, tensors
    )


def granite_q4_1() -> ModelSpec:
    """Granite: numbers that embeddings, attention, branches and logits are multiplied or divided by."""
    words = byte_level("refact", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")
    vocab_size = len(words.tokens)
    tensors = [
        matrix("token_embd", "Q4_1", vocab_size, HIDDEN),
        matrix("output", "Q8_0", vocab_size, HIDDEN, gain=12),
        *llama_layer("blk.0", "Q4_1", "Q4_1", 96),
        *llama_layer("blk.1", "Q4_1", "Q4_1", 96),
        norm("output_norm", HIDDEN),
    ]
    scales = {"embedding_scale": 6.0, "residual_scale": 1.75, "attention.scale": 0.2, "logit_scale": 4.0}
    settings = keys(96, 2, 1) | {"rope.dimension_count": HEAD_DIM, "rope.freq_base": 1e7} | scales
    ids = {"bos": vocab_size - 3, "eos": vocab_size - 3, "padding": vocab_size - 3, "add_bos": False}
    return ModelSpec("granite", "Small Granite", LlamaFileType.MOSTLY_Q4_1, settings, words, ids, GRANITE_CHAT, tensors)


def smollm3_q5_1() -> ModelSpec:
    """SmolLM3: four layers, of which the last is not rotated."""
    words = byte_level("llama-bpe", "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
    vocab_size = len(words.tokens)
    tensors = [
        *tied(vocab_size, "Q8_0"),
        *(tensor for layer in range(4) for tensor in llama_layer(f"blk.{layer}", "Q5_1", "Q5_1", 64)),
        norm("output_norm", HIDDEN),
    ]
    settings = keys(64, 2, 1) | {"block_count": 4, "rope.dimension_count": HEAD_DIM, "rope.freq_base": 5e6}
    ids = {"bos": vocab_size - 4, "eos": vocab_size - 1, "padding": vocab_size - 3, "add_bos": False}
    return ModelSpec("smollm3", "Small SmolLM3", LlamaFileType.MOSTLY_Q5_1, settings, words, ids, CHATML, tensors)


def glm4_f16() -> ModelSpec:
    """GLM-4: norms after each branch, half of each head rotated, gate and up in one matrix."""
    special = "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"
    words = byte_level("glm4", *special)
    vocab_size = len(words.tokens)
    tensors = [
        *embedding_and_head(vocab_size, "F16", "F16"),
        *glm4_layer("blk.0", "F16", 32),
        *glm4_layer("blk.1", "F16", 32),
        norm("output_norm", HIDDEN),
    ]
    settings = keys(32, 2, 1) | LENGTHS | {"rope.dimension_count": HEAD_DIM // 2, "rope.freq_base": 10000.0}
    ids = {"bos": vocab_size - 6, "eos": vocab_size - 6, "eot": vocab_size - 2, "padding": vocab_size - 6}
    return ModelSpec("glm4", "Small GLM-4", LlamaFileType.MOSTLY_F16, settings, words, ids, GLM4_CHAT, tensors)


def phi4_q5_0() -> ModelSpec:
    """Phi-4: as Phi-3, without a window, and with byte-level BPE."""
    special = "<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"
    words = byte_level("dbrx", *special)
    vocab_size = len(words.tokens)
    tensors = [
        *embedding_and_head(vocab_size, "Q5_0", "Q8_0"),
        *phi3_layer("blk.0", "Q5_0", "Q5_0", 64),
        *phi3_layer("blk.1", "Q5_0", "Q5_0", 64),
        norm("output_norm", HIDDEN),
    ]
    rope = {"rope.dimension_count": HEAD_DIM, "rope.freq_base": 250000.0, "attention.sliding_window": 0}
    original = {"rope.scaling.original_context_length": CONTEXT_LENGTH}
    settings = keys(64, 2, 2) | rope | original
    ids = {"bos": vocab_size - 4, "eos": vocab_size - 1, "padding": vocab_size - 4, "add_bos": False}
    return ModelSpec("phi3", "Small Phi-4", LlamaFileType.MOSTLY_Q5_0, settings, words, ids, PHI4_CHAT, tensors)
