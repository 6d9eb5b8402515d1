"""What published files of Llama 3.1 and Qwen3-MoE hold, at any size; see `tests.bench.model_specs`."""

from __future__ import annotations

from tests.bench.model_specs import CHATML, ModelSpec, TensorSpec, more_bits, norm, weight
from tests.bench.vocabularies import byte_level

HEAD_DIM = 128
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA3_TOKENS = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
"""Special tokens by their distance from the first one."""


def attention(blk: str, value_format: str, *, hidden: int, heads: int, kv_heads: int) -> list[TensorSpec]:
    """The matrices of a layer's attention in Q4_K_M."""
    return [
        norm(f"{blk}.attn_norm", hidden),
        weight(f"{blk}.attn_q", "Q4_K", heads * HEAD_DIM, hidden),
        weight(f"{blk}.attn_k", "Q4_K", kv_heads * HEAD_DIM, hidden),
        weight(f"{blk}.attn_v", value_format, kv_heads * HEAD_DIM, hidden),
        weight(f"{blk}.attn_output", "Q4_K", hidden, heads * HEAD_DIM),
        norm(f"{blk}.ffn_norm", hidden),
    ]


def llama3(num_layers: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, num_regular: int) -> ModelSpec:
    """Llama 3.1 in Q4_K_M, with its factors on the rotary frequencies."""
    special = [f"<|reserved_special_token_{number}|>" for number in range(256)]
    for offset, name in LLAMA3_TOKENS.items():
        special[offset] = f"<|{name}|>"
    vocabulary = byte_level("llama-bpe", num_regular, special, 0)
    vocab_size = len(vocabulary.tokens)
    tensors = [
        weight("token_embd", "Q4_K", vocab_size, hidden),
        weight("output", "Q6_K", vocab_size, hidden),
        norm("output_norm", hidden),
        TensorSpec("rope_freqs.weight", "F32", (HEAD_DIM // 2,), mean=4.0, deviation=0.5),
    ]
    for layer in range(num_layers):
        blk, rich = f"blk.{layer}", "Q6_K" if more_bits(layer, num_layers) else "Q4_K"
        tensors += [
            *attention(blk, rich, hidden=hidden, heads=heads, kv_heads=kv_heads),
            weight(f"{blk}.ffn_gate", "Q4_K", ffn, hidden),
            weight(f"{blk}.ffn_up", "Q4_K", ffn, hidden),
            weight(f"{blk}.ffn_down", rich, hidden, ffn),
        ]
    keys = {
        "block_count": num_layers,
        "context_length": 131072,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": 500000.0,
    }
    ids = {"bos": num_regular, "eos": num_regular + 9, "add_bos": True}
    return ModelSpec("llama", "Synthetic Llama 3.1", 15, keys, vocabulary, ids, LLAMA3_CHAT, tensors)


def qwen3moe(
    num_layers: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, experts: int, used: int, num_regular: int
) -> ModelSpec:
    """Qwen3-MoE in Q4_K_M; ``ffn`` is the width of an expert."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|special_{number}|>" for number in range(23))]
    vocabulary = byte_level("qwen2", num_regular, special, 267)
    vocab_size = len(vocabulary.tokens)
    tensors = [
        weight("token_embd", "Q4_K", vocab_size, hidden),
        weight("output", "Q6_K", vocab_size, hidden),
        norm("output_norm", hidden),
    ]
    for layer in range(num_layers):
        blk, rich = f"blk.{layer}", "Q6_K" if more_bits(layer, num_layers) else "Q4_K"
        tensors += [
            *attention(blk, rich, hidden=hidden, heads=heads, kv_heads=kv_heads),
            norm(f"{blk}.attn_q_norm", HEAD_DIM),
            norm(f"{blk}.attn_k_norm", HEAD_DIM),
            weight(f"{blk}.ffn_gate_inp", "F32", experts, hidden),
            weight(f"{blk}.ffn_gate_exps", "Q4_K", experts, ffn, hidden),
            weight(f"{blk}.ffn_up_exps", "Q4_K", experts, ffn, hidden),
            weight(f"{blk}.ffn_down_exps", rich, experts, hidden, ffn),
        ]
    keys = {
        "block_count": num_layers,
        "context_length": 40960,
        "embedding_length": hidden,
        "feed_forward_length": used * ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
        "expert_count": experts,
        "expert_used_count": used,
        "expert_feed_forward_length": ffn,
    }
    ids = {"bos": num_regular, "eos": num_regular + 2, "padding": num_regular, "add_bos": False}
    return ModelSpec("qwen3moe", "Synthetic Qwen3-MoE", 15, keys, vocabulary, ids, CHATML, tensors)
