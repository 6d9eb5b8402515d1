"""What published models' files hold: tensors, types and metadata of Qwen2.5, Phi-3 and gpt-oss, at any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.bench.vocabularies import Vocabulary, byte_level, sentencepiece

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI3_CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
HARMONY = (
    "{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
PHI3_TOKENS = {0: "endoftext", 1: "assistant", 6: "system", 7: "end", 10: "user"}
HARMONY_TOKENS = {
    0: "startoftext",
    1: "endoftext",
    4: "return",
    5: "constrain",
    7: "channel",
    8: "start",
    9: "end",
    10: "message",
    14: "call",
    20: "endofprompt",
}
"""Special tokens by their distance from the first one."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor; ``shape`` row-major. The numbers are ``mean`` plus noise of ``deviation``."""

    name: str
    format: str
    shape: tuple[int, ...]
    mean: float = 0.0
    deviation: float = 0.02


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All that goes into a file; ``keys`` are the architecture's, without its prefix."""

    architecture: str
    name: str
    file_type: int
    keys: dict[str, Any]
    vocabulary: Vocabulary
    token_ids: dict[str, int | bool]
    chat_template: str
    tensors: list[TensorSpec]


def weight(name: str, format_: str, *shape: int) -> TensorSpec:
    """A matrix that keeps the size of what goes through it."""
    return TensorSpec(f"{name}.weight", format_, shape, deviation=shape[-1] ** -0.5)


def biased(name: str, format_: str, *shape: int) -> tuple[TensorSpec, TensorSpec]:
    """A matrix, or experts' matrices, with a bias for each output."""
    return weight(name, format_, *shape), TensorSpec(f"{name}.bias", "F32", shape[:-1])


def norm(name: str, width: int) -> TensorSpec:
    return TensorSpec(f"{name}.weight", "F32", (width,), mean=1.0, deviation=0.05)


def more_bits(layer: int, num_layers: int) -> bool:
    """Whether llama.cpp's Q4_K_M gives a layer's sensitive tensors more bits (``llama-quant.cpp``: use_more_bits)."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def qwen2(num_layers: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, num_regular: int) -> ModelSpec:
    """Qwen2.5 in Q4_K_M; 896 is no multiple of 256, so most tensors fall back to Q5_0 and Q8_0."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|special_{number}|>" for number in range(19))]
    vocabulary = byte_level("qwen2", num_regular, special, 271)
    vocab_size = len(vocabulary.tokens)
    tensors = [
        weight("output", "Q8_0", vocab_size, hidden),
        weight("token_embd", "Q5_0", vocab_size, hidden),
        norm("output_norm", hidden),
    ]
    for layer in range(num_layers):
        blk, rich = f"blk.{layer}", more_bits(layer, num_layers)
        tensors += [
            norm(f"{blk}.attn_norm", hidden),
            *biased(f"{blk}.attn_q", "Q5_0", heads * 64, hidden),
            *biased(f"{blk}.attn_k", "Q5_0", kv_heads * 64, hidden),
            *biased(f"{blk}.attn_v", "Q8_0" if rich else "Q5_0", kv_heads * 64, hidden),
            weight(f"{blk}.attn_output", "Q5_0", hidden, heads * 64),
            norm(f"{blk}.ffn_norm", hidden),
            weight(f"{blk}.ffn_gate", "Q5_0", ffn, hidden),
            weight(f"{blk}.ffn_up", "Q5_0", ffn, hidden),
            weight(f"{blk}.ffn_down", "Q6_K" if rich else "Q4_K", hidden, ffn),
        ]
    keys = {
        "block_count": num_layers,
        "context_length": 32768,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "rope.freq_base": 1e6,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    ids = {"bos": num_regular, "eos": num_regular + 2, "padding": num_regular, "add_bos": False}
    return ModelSpec("qwen2", "Synthetic Qwen2.5", 15, keys, vocabulary, ids, CHATML, tensors)


def phi3(num_layers: int, *, hidden: int, ffn: int, heads: int, num_regular: int, window: int, q4_0: bool) -> ModelSpec:
    """Phi-3-mini in Q4_K_M or Q4_0: QKV and gate/up are fused."""
    special = [f"<|placeholder{number}|>" for number in range(11)]
    for offset, name in PHI3_TOKENS.items():
        special[offset] = f"<|{name}|>"
    vocabulary = sentencepiece(num_regular, special, 53)
    vocab_size = len(vocabulary.tokens)
    tensors = [
        weight("token_embd", "Q4_0" if q4_0 else "Q4_K", vocab_size, hidden),
        norm("output_norm", hidden),
        weight("output", "Q6_K", vocab_size, hidden),
    ]
    for layer in range(num_layers):
        blk, rich = f"blk.{layer}", more_bits(layer, num_layers)
        tensors += [
            norm(f"{blk}.attn_norm", hidden),
            weight(f"{blk}.attn_qkv", "Q4_0" if q4_0 else "Q5_K", 3 * hidden, hidden),
            weight(f"{blk}.attn_output", "Q4_0" if q4_0 else "Q4_K", hidden, hidden),
            norm(f"{blk}.ffn_norm", hidden),
            weight(f"{blk}.ffn_up", "Q4_0" if q4_0 else "Q4_K", 2 * ffn, hidden),
            weight(f"{blk}.ffn_down", "Q4_0" if q4_0 else "Q6_K" if rich else "Q4_K", hidden, ffn),
        ]
    keys = {
        "context_length": 4096,
        "rope.scaling.original_context_length": 4096,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "block_count": num_layers,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": hidden // heads,
        "rope.freq_base": 10000.0,
        "attention.sliding_window": window,
    }
    ids = {"bos": 1, "eos": num_regular, "unknown": 0, "padding": num_regular, "add_bos": True, "add_eos": False}
    return ModelSpec("phi3", "Synthetic Phi-3-mini", 2 if q4_0 else 15, keys, vocabulary, ids, PHI3_CHAT, tensors)


def gpt_oss(
    num_layers: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, experts: int, used: int, num_regular: int
) -> ModelSpec:
    """gpt-oss in MXFP4: the experts; what is dense is Q8_0."""
    special = [f"<|reserved_{number}|>" for number in range(1090)]
    for offset, name in HARMONY_TOKENS.items():
        special[offset] = f"<|{name}|>"
    vocabulary = byte_level("gpt-4o", num_regular, special, 0)
    vocab_size = len(vocabulary.tokens)
    width, kv_width = heads * 64, kv_heads * 64
    tensors = [
        weight("token_embd", "Q8_0", vocab_size, hidden),
        weight("output", "Q8_0", vocab_size, hidden),
        norm("output_norm", hidden),
    ]
    for layer in range(num_layers):
        blk = f"blk.{layer}"
        tensors += [
            norm(f"{blk}.attn_norm", hidden),
            *biased(f"{blk}.attn_q", "Q8_0", width, hidden),
            *biased(f"{blk}.attn_k", "Q8_0", kv_width, hidden),
            *biased(f"{blk}.attn_v", "Q8_0", kv_width, hidden),
            *biased(f"{blk}.attn_output", "Q8_0", hidden, width),
            TensorSpec(f"{blk}.attn_sinks.weight", "F32", (heads,), deviation=1.0),
            norm(f"{blk}.post_attention_norm", hidden),
            *biased(f"{blk}.ffn_gate_inp", "F32", experts, hidden),
            *biased(f"{blk}.ffn_gate_exps", "MXFP4", experts, ffn, hidden),
            *biased(f"{blk}.ffn_up_exps", "MXFP4", experts, ffn, hidden),
            *biased(f"{blk}.ffn_down_exps", "MXFP4", experts, hidden, ffn),
        ]
    keys = {
        "block_count": num_layers,
        "context_length": 131072,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "rope.freq_base": 150000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "expert_count": experts,
        "expert_used_count": used,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.sliding_window": 128,
        "expert_feed_forward_length": ffn,
    }
    ids = {"bos": num_regular, "eos": num_regular + 4, "padding": num_regular + 1}
    return ModelSpec("gpt-oss", "Synthetic gpt-oss", 38, keys, vocabulary, ids, HARMONY, tensors)
