"""What published files of Qwen3.5 and Qwen3.6 hold, at any size; see `tests.bench.model_specs`."""

from __future__ import annotations

from typing import Any

from tests.bench.model_specs import CHATML, ModelSpec, TensorSpec, more_bits, norm, weight
from tests.bench.vocabularies import Vocabulary, byte_level

HEAD_DIM = 256
STATE_SIZE = 128
KEY_HEADS = 16
VALUE_HEADS = 32
INTERVAL = 4


def qwen35(num_layers: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, num_regular: int) -> ModelSpec:
    """Qwen3.5 in Q4_K_M: every fourth layer has attention, the others are gated delta nets."""
    vocabulary = _vocabulary(num_regular)
    tensors = _ends(len(vocabulary.tokens), hidden)
    for layer in range(num_layers):
        blk, rich = f"blk.{layer}", "Q6_K" if more_bits(layer, num_layers) else "Q4_K"
        tensors += [
            *_mixer(blk, layer, rich, hidden, heads, kv_heads),
            weight(f"{blk}.ffn_gate", "Q4_K", ffn, hidden),
            weight(f"{blk}.ffn_up", "Q4_K", ffn, hidden),
            weight(f"{blk}.ffn_down", rich, hidden, ffn),
        ]
    keys = _keys(num_layers, hidden, heads, kv_heads) | {"feed_forward_length": ffn}
    return ModelSpec("qwen35", "Synthetic Qwen3.5", 15, keys, vocabulary, _ids(num_regular), CHATML, tensors)


def qwen35moe(
    num_layers: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, experts: int, used: int, num_regular: int
) -> ModelSpec:
    """Qwen3.6-A3B in Q4_K_M; ``ffn`` is the width of an expert and of the shared one."""
    vocabulary = _vocabulary(num_regular)
    tensors = _ends(len(vocabulary.tokens), hidden)
    for layer in range(num_layers):
        blk, rich = f"blk.{layer}", "Q6_K" if more_bits(layer, num_layers) else "Q4_K"
        tensors += [
            *_mixer(blk, layer, rich, hidden, heads, kv_heads),
            weight(f"{blk}.ffn_gate_inp", "F32", experts, hidden),
            weight(f"{blk}.ffn_gate_exps", "Q4_K", experts, ffn, hidden),
            weight(f"{blk}.ffn_up_exps", "Q4_K", experts, ffn, hidden),
            weight(f"{blk}.ffn_down_exps", rich, experts, hidden, ffn),
            weight(f"{blk}.ffn_gate_inp_shexp", "F32", hidden),
            weight(f"{blk}.ffn_gate_shexp", "Q4_K", ffn, hidden),
            weight(f"{blk}.ffn_up_shexp", "Q4_K", ffn, hidden),
            weight(f"{blk}.ffn_down_shexp", rich, hidden, ffn),
        ]
    keys = _keys(num_layers, hidden, heads, kv_heads) | {
        "expert_count": experts,
        "expert_used_count": used,
        "expert_feed_forward_length": ffn,
        "expert_shared_feed_forward_length": ffn,
    }
    return ModelSpec("qwen35moe", "Synthetic Qwen3.6-A3B", 15, keys, vocabulary, _ids(num_regular), CHATML, tensors)


def _mixer(blk: str, layer: int, rich: str, hidden: int, heads: int, kv_heads: int) -> list[TensorSpec]:
    """Attention with a gate, or a gated delta net, and the norms around it."""
    norms = [norm(f"{blk}.attn_norm", hidden), norm(f"{blk}.post_attention_norm", hidden)]
    if (layer + 1) % INTERVAL == 0:
        return [
            *norms,
            weight(f"{blk}.attn_q", "Q4_K", 2 * heads * HEAD_DIM, hidden),
            weight(f"{blk}.attn_k", "Q4_K", kv_heads * HEAD_DIM, hidden),
            weight(f"{blk}.attn_v", rich, kv_heads * HEAD_DIM, hidden),
            norm(f"{blk}.attn_q_norm", HEAD_DIM),
            norm(f"{blk}.attn_k_norm", HEAD_DIM),
            weight(f"{blk}.attn_output", "Q4_K", hidden, heads * HEAD_DIM),
        ]
    value_width = VALUE_HEADS * STATE_SIZE
    channels = 2 * KEY_HEADS * STATE_SIZE + value_width
    return [
        *norms,
        weight(f"{blk}.attn_qkv", "Q5_K", channels, hidden),
        weight(f"{blk}.attn_gate", "Q4_K", value_width, hidden),
        weight(f"{blk}.ssm_beta", "Q4_K", VALUE_HEADS, hidden),
        weight(f"{blk}.ssm_alpha", "Q4_K", VALUE_HEADS, hidden),
        TensorSpec(f"{blk}.ssm_conv1d.weight", "F32", (channels, 4), deviation=0.5),
        TensorSpec(f"{blk}.ssm_a", "F32", (VALUE_HEADS,), mean=-1.0, deviation=0.2),
        TensorSpec(f"{blk}.ssm_dt.bias", "F32", (VALUE_HEADS,), deviation=0.5),
        norm(f"{blk}.ssm_norm", STATE_SIZE),
        weight(f"{blk}.ssm_out", "Q4_K", hidden, value_width),
    ]


def _ends(vocab_size: int, hidden: int) -> list[TensorSpec]:
    return [
        weight("token_embd", "Q4_K", vocab_size, hidden),
        weight("output", "Q6_K", vocab_size, hidden),
        norm("output_norm", hidden),
    ]


def _keys(num_layers: int, hidden: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "block_count": num_layers,
        "context_length": 262144,
        "embedding_length": hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD_DIM // 4,
        "rope.dimension_sections": [11, 11, 10, 0],
        "rope.freq_base": 1e7,
        "ssm.conv_kernel": 4,
        "ssm.state_size": STATE_SIZE,
        "ssm.group_count": KEY_HEADS,
        "ssm.time_step_rank": VALUE_HEADS,
        "ssm.inner_size": VALUE_HEADS * STATE_SIZE,
        "full_attention_interval": INTERVAL,
    }


def _vocabulary(num_regular: int) -> Vocabulary:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|special_{number}|>" for number in range(30))]
    return byte_level("qwen35", num_regular, special, 243)


def _ids(num_regular: int) -> dict[str, int | bool]:
    return {"bos": num_regular, "eos": num_regular + 2, "padding": num_regular, "add_bos": False}
