"""The small models: tensors, types and metadata as in published files of each family.

`tests.models.layers` has what they are made of. Each model is a function here or, of Llama's later kin, in
`tests.models.llama_specs`, and a row of `SPECS`.
"""

from __future__ import annotations

from collections.abc import Callable

from gguf.constants import LlamaFileType

from tests.bench.model_specs import CHATML, HARMONY, PHI3_CHAT, ModelSpec, TensorSpec, norm
from tests.models.gemma_specs import gemma2_q8_0, gemma3_q4_0, gemma4_e_q8_0, gemma4_moe_q4_0, gemma4_q4_0
from tests.models.hybrid_specs import lfm2_q5_1, muse_glimmer_q4_0, qwen3next_q8_0, qwen35_q4_k_m, qwen35moe_q4_0
from tests.models.layers import (
    CONTEXT_LENGTH,
    HEAD_DIM,
    HIDDEN,
    embedding_and_head,
    gpt2_layer,
    gpt_oss_layer,
    keys,
    layer_norm,
    llama_layer,
    phi3_layer,
    rope_factors,
    tied,
)
from tests.models.llama_specs import (
    LLAMA2_CHAT,
    glm4_f16,
    granite_q4_1,
    mistral3_q8_0,
    mixtral_q5_0,
    phi4_q5_0,
    qwen2moe_q5_1,
    qwen3moe_q4_0,
    smollm3_q5_1,
)
from tests.models.vocabularies import byte_level, sentencepiece

LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI4_CHAT = PHI3_CHAT.replace("\n", "")


def llama2_q4_0() -> ModelSpec:
    """Llama 2: SentencePiece's vocabulary."""
    words = sentencepiece()
    tensors = [
        *embedding_and_head(len(words.tokens), "Q4_0", "Q8_0"),
        *llama_layer("blk.0", "Q4_0", "Q4_0", 128),
        *llama_layer("blk.1", "Q4_0", "Q4_0", 128),
        norm("output_norm", HIDDEN),
    ]
    settings = keys(128, 2, 1) | {"rope.dimension_count": HEAD_DIM}
    ids = {"bos": 1, "eos": 2, "unknown": 0, "add_bos": True, "add_eos": False}
    return ModelSpec("llama", "Small Llama 2", LlamaFileType.MOSTLY_Q4_0, settings, words, ids, LLAMA2_CHAT, tensors)


def llama3_bf16() -> ModelSpec:
    """Llama 3.2: byte-level BPE, factors on the rotary frequencies, the embedding tied to the head."""
    special = "begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"
    words = byte_level("llama-bpe", *(f"<|{name}|>" for name in special))
    vocab_size = len(words.tokens)
    tensors = [
        *tied(vocab_size, "BF16"),
        rope_factors("rope_freqs", HEAD_DIM // 2, 3.0),
        *llama_layer("blk.0", "BF16", "BF16", 32),
        *llama_layer("blk.1", "BF16", "BF16", 32),
        norm("output_norm", HIDDEN),
    ]
    settings = keys(32, 2, 1) | {"rope.dimension_count": HEAD_DIM, "rope.freq_base": 500000.0}
    ids = {"bos": vocab_size - 5, "eos": vocab_size - 1}
    return ModelSpec("llama", "Small Llama 3", LlamaFileType.MOSTLY_BF16, settings, words, ids, LLAMA3_CHAT, tensors)


def qwen2_q4_k_m() -> ModelSpec:
    """Qwen2.5-0.5B: biases; where rows are too short for K-quants, the formats that llama.cpp then takes."""
    words = byte_level("qwen2", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocab_size = len(words.tokens)
    tensors = [
        *embedding_and_head(vocab_size, "Q5_0", "Q8_0"),
        *llama_layer("blk.0", "Q5_0", "Q6_K", 256, bias=True),
        *llama_layer("blk.1", "Q5_0", "Q4_K", 256, bias=True),
        norm("output_norm", HIDDEN),
    ]
    settings = keys(256, 2, 1) | {"rope.freq_base": 1e6}
    ids = {"bos": vocab_size - 3, "eos": vocab_size - 1, "padding": vocab_size - 3, "add_bos": False}
    return ModelSpec("qwen2", "Small Qwen2", LlamaFileType.MOSTLY_Q4_K_M, settings, words, ids, CHATML, tensors)


def qwen3_q4_1() -> ModelSpec:
    """Qwen3: norms of query and key heads, which are longer in all than the model is wide; user-defined tokens."""
    words = byte_level("qwen2", "<|endoftext|>", "<|im_start|>", "<|im_end|>", defined=("<think>", "</think>"))
    vocab_size = len(words.tokens)
    tensors = [
        *tied(vocab_size, "Q8_0"),
        *llama_layer("blk.0", "Q4_1", "Q4_1", 96, heads=4, head_norms=True),
        *llama_layer("blk.1", "Q4_1", "Q4_1", 96, heads=4, head_norms=True),
        norm("output_norm", HIDDEN),
    ]
    lengths = {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
    settings = keys(96, 4, 2) | lengths | {"rope.freq_base": 1e6}
    ids = {"bos": vocab_size - 5, "eos": vocab_size - 3, "padding": vocab_size - 5, "add_bos": False}
    return ModelSpec("qwen3", "Small Qwen3", LlamaFileType.MOSTLY_Q4_1, settings, words, ids, CHATML, tensors)


def qwen3_q2_k() -> ModelSpec:
    """Qwen3 in the types of Q2_K, Q3_K and IQ4_XS files; heads are longer in all than the model is wide: 256."""
    return _qwen3_mix("Small Qwen3 Q2_K", LlamaFileType.MOSTLY_Q2_K, "Q2_K", "Q3_K", "IQ4_XS", "IQ3_S")


def qwen3_iq2_m() -> ModelSpec:
    """The same in the types of IQ2 and IQ3 files."""
    return _qwen3_mix("Small Qwen3 IQ2_M", LlamaFileType.MOSTLY_IQ2_M, "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_XXS")


def _qwen3_mix(name: str, file_type: LlamaFileType, *formats: str) -> ModelSpec:
    """Two layers, whose attention and FFN end in the four ``formats``; where rows are shorter, IQ4_NL."""
    words = byte_level("qwen2", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocab_size = len(words.tokens)
    layers = (
        llama_layer(f"blk.{layer}", "IQ4_NL", down, 256, heads=16, head_norms=True, output=output)
        for layer, (output, down) in enumerate([formats[:2], formats[2:]])
    )
    tensors = [
        *embedding_and_head(vocab_size, "IQ4_NL", "Q8_0"),
        *(tensor for layer in layers for tensor in layer),
        norm("output_norm", HIDDEN),
    ]
    lengths = {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
    settings = keys(256, 16, 8) | lengths | {"rope.freq_base": 1e6}
    ids = {"bos": vocab_size - 3, "eos": vocab_size - 1, "padding": vocab_size - 3, "add_bos": False}
    return ModelSpec("qwen3", name, file_type, settings, words, ids, CHATML, tensors)


def phi3_q5_k_m() -> ModelSpec:
    """Phi-3-mini-4k: fused matrices, a sliding window, SentencePiece's vocabulary with chat tokens."""
    words = sentencepiece("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    vocab_size = len(words.tokens)
    tensors = [
        *embedding_and_head(vocab_size, "Q5_1", "Q8_0"),
        *phi3_layer("blk.0", "Q5_1", "Q5_K", 256),
        *phi3_layer("blk.1", "Q5_1", "Q5_K", 256),
        norm("output_norm", HIDDEN),
    ]
    settings = keys(256, 2, 2) | {"rope.dimension_count": HEAD_DIM, "attention.sliding_window": 16}
    ids = {"bos": 1, "eos": vocab_size - 5, "unknown": 0, "padding": vocab_size - 5, "add_bos": True, "add_eos": False}
    return ModelSpec("phi3", "Small Phi-3", LlamaFileType.MOSTLY_Q5_K_M, settings, words, ids, PHI3_CHAT, tensors)


def phi4_mini_f16() -> ModelSpec:
    """Phi-4-mini: longrope on three quarters of each head, byte-level BPE, the embedding tied to the head."""
    words = byte_level("gpt-4o", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    vocab_size = len(words.tokens)
    num_rotated = HEAD_DIM * 3 // 4
    tensors = [
        *tied(vocab_size, "F16"),
        rope_factors("rope_factors_short", num_rotated // 2, 1.2),
        rope_factors("rope_factors_long", num_rotated // 2, 5.0),
        *phi3_layer("blk.0", "F16", "F16", 32),
        *phi3_layer("blk.1", "F16", "F16", 32),
        norm("output_norm", HIDDEN),
    ]
    rope = {"rope.dimension_count": num_rotated, "rope.scaling.original_context_length": 32}
    settings = keys(32, 2, 2) | rope | {"rope.scaling.attn_factor": 1.2649}
    ids = {"bos": vocab_size - 5, "eos": vocab_size - 2, "add_bos": False}
    return ModelSpec("phi3", "Small Phi-4-mini", LlamaFileType.MOSTLY_F16, settings, words, ids, PHI4_CHAT, tensors)


def gpt2_q8_0() -> ModelSpec:
    """GPT-2: learned positions, norms with biases, no chat template."""
    words = byte_level("gpt-2", "<|endoftext|>")
    vocab_size = len(words.tokens)
    tensors = [
        *tied(vocab_size, "Q8_0"),
        TensorSpec("position_embd.weight", "F16", (CONTEXT_LENGTH, HIDDEN), deviation=0.5),
        *gpt2_layer("blk.0", "Q8_0"),
        *gpt2_layer("blk.1", "Q8_0"),
        *layer_norm("output_norm"),
    ]
    settings = keys(4 * HIDDEN, 2, 2, norm_epsilon="layer_norm_epsilon")
    ids = {"bos": vocab_size - 1, "eos": vocab_size - 1}
    return ModelSpec("gpt2", "Small GPT-2", LlamaFileType.MOSTLY_Q8_0, settings, words, ids, "", tensors)


def gpt_oss_mxfp4_moe() -> ModelSpec:
    """gpt-oss: experts, sinks, a window of 16 on the first layer, YaRN, the vocabulary of harmony."""
    special = "startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call"
    words = byte_level("gpt-4o", *(f"<|{name}|>" for name in special))
    vocab_size = len(words.tokens)
    tensors = [
        *embedding_and_head(vocab_size, "Q8_0", "Q8_0"),
        *gpt_oss_layer("blk.0", 4, 32, 4),
        *gpt_oss_layer("blk.1", 4, 32, 4),
        norm("output_norm", HIDDEN),
    ]
    settings = keys(32, 4, 2) | {
        "rope.freq_base": 150000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
        # Interpolation begins at dimension 2.0001 and ends at 4.9999: llama.cpp rounds the two, others do not.
        "rope.scaling.yarn_beta_fast": 33.12,
        "rope.scaling.yarn_beta_slow": 0.37948,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.sliding_window": 16,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 32,
    }
    ids = {"bos": vocab_size - 9, "eos": vocab_size - 7, "padding": vocab_size - 8}
    return ModelSpec("gpt-oss", "Small gpt-oss", LlamaFileType.MOSTLY_MXFP4_MOE, settings, words, ids, HARMONY, tensors)


SPECS: dict[str, tuple[int, Callable[[], ModelSpec]]] = {
    "llama2-q4_0": (12, llama2_q4_0),
    "llama3-bf16": (15, llama3_bf16),
    "qwen2-q4_k_m": (37, qwen2_q4_k_m),
    "qwen3-q4_1": (36, qwen3_q4_1),
    "qwen3-q2_k": (2, qwen3_q2_k),
    "qwen3-iq2_m": (6, qwen3_iq2_m),
    "phi3-q5_k_m": (30, phi3_q5_k_m),
    "phi4-mini-f16": (3, phi4_mini_f16),
    "gpt2-q8_0": (83, gpt2_q8_0),
    "gpt-oss-mxfp4_moe": (10, gpt_oss_mxfp4_moe),
    "gemma2-q8_0": (5, gemma2_q8_0),
    "gemma3-q4_0": (1, gemma3_q4_0),
    "gemma4-q4_0": (6, gemma4_q4_0),
    "gemma4-e-q8_0": (5, gemma4_e_q8_0),
    "gemma4-moe-q4_0": (8, gemma4_moe_q4_0),
    "qwen3moe-q4_0": (17, qwen3moe_q4_0),
    "qwen2moe-q5_1": (41, qwen2moe_q5_1),
    "mixtral-q5_0": (17, mixtral_q5_0),
    "mistral3-q8_0": (9, mistral3_q8_0),
    "granite-q4_1": (20, granite_q4_1),
    "smollm3-q5_1": (9, smollm3_q5_1),
    "glm4-f16": (9, glm4_f16),
    "phi4-q5_0": (15, phi4_q5_0),
    "qwen35-q4_k_m": (13, qwen35_q4_k_m),
    "qwen35moe-q4_0": (1745, qwen35moe_q4_0),
    "qwen3next-q8_0": (40, qwen3next_q8_0),
    "lfm2-q5_1": (60, lfm2_q5_1),
    "muse-glimmer-q4_0": (56, muse_glimmer_q4_0),
}
"""File name, without its ending -> seed, contents.

Seeds are chosen so that greedy ids repeat little and have no near ties, and routers none where logits are compared.
"""
