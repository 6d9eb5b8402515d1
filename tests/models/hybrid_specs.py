"""The small models of which some layers keep a state, and of their kin; see `tests.models.specs`."""

from __future__ import annotations

from typing import Any

from gguf.constants import LlamaFileType

from tests.bench.model_specs import CHATML, ModelSpec, TensorSpec, norm
from tests.models.layers import (
    HEAD_DIM,
    HIDDEN,
    attention,
    embedding_and_head,
    keys,
    matrix,
    mixture,
    shared_expert,
    tied,
)
from tests.models.vocabularies import byte_level

BOS_CHATML = "{{ bos_token }}" + CHATML
MUSE_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""Not with ``<|start|>`` of the real one: llama.cpp takes that for GPT-OSS's, and reads it in any text."""
LENGTHS = {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
STATE_SIZE = 16
EXPERTS = {"expert_count": 8, "expert_used_count": 3}
WIDTHS = {"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 64}


def delta_net_keys(key_heads: int, value_heads: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": 4,
        "ssm.state_size": STATE_SIZE,
        "ssm.group_count": key_heads,
        "ssm.time_step_rank": value_heads,
        "ssm.inner_size": value_heads * STATE_SIZE,
        "rope.dimension_count": HEAD_DIM // 2,
        "rope.freq_base": 1e7,
    }


def delta_net(name: str, format_: str, key_heads: int, value_heads: int, *, fused: bool = False) -> list[TensorSpec]:
    """A gated delta net; ``fused``: beta and alpha are one tensor."""
    value_width = value_heads * STATE_SIZE
    channels = 2 * key_heads * STATE_SIZE + value_width
    rates = {"ssm_ba": 2 * value_heads} if fused else {"ssm_beta": value_heads, "ssm_alpha": value_heads}
    return [
        norm(f"{name}.attn_norm", HIDDEN),
        matrix(f"{name}.attn_qkv", format_, channels, HIDDEN, gain=2),
        matrix(f"{name}.attn_gate", format_, value_width, HIDDEN, gain=2),
        *(matrix(f"{name}.{part}", format_, rows, HIDDEN, gain=1.5) for part, rows in rates.items()),
        TensorSpec(f"{name}.ssm_conv1d.weight", "F32", (channels, 4), deviation=0.6),
        TensorSpec(f"{name}.ssm_a", "F32", (value_heads,), mean=-0.5, deviation=0.1),
        TensorSpec(f"{name}.ssm_dt.bias", "F32", (value_heads,), deviation=0.5),
        norm(f"{name}.ssm_norm", STATE_SIZE),
        matrix(f"{name}.ssm_out", format_, HIDDEN, value_width, gain=2),
        norm(f"{name}.post_attention_norm", HIDDEN),
    ]


def gated_attention(name: str, format_: str, *, heads: int = 4) -> list[TensorSpec]:
    """Attention, of which two heads share keys and values; rows of Q are a query and a gate for each head."""
    return [
        norm(f"{name}.attn_norm", HIDDEN),
        matrix(f"{name}.attn_q", format_, 2 * heads * HEAD_DIM, HIDDEN, gain=3),
        matrix(f"{name}.attn_k", format_, heads // 2 * HEAD_DIM, HIDDEN, gain=3),
        matrix(f"{name}.attn_v", format_, heads // 2 * HEAD_DIM, HIDDEN, gain=2),
        *(TensorSpec(f"{name}.attn_{part}_norm.weight", "F32", (HEAD_DIM,), 2.0, 0.1) for part in "qk"),
        matrix(f"{name}.attn_output", format_, HIDDEN, heads * HEAD_DIM, gain=2),
        norm(f"{name}.post_attention_norm", HIDDEN),
    ]


def feed_forward(name: str, format_: str, down: str, ffn: int) -> list[TensorSpec]:
    return [
        matrix(f"{name}.ffn_gate", format_, ffn, HIDDEN, gain=2),
        matrix(f"{name}.ffn_up", format_, ffn, HIDDEN),
        matrix(f"{name}.ffn_down", down, HIDDEN, ffn, gain=2),
    ]


def shared_mixture(name: str, format_: str, down: str) -> list[TensorSpec]:
    """Experts of which one is shared; the norm before them has the name of the one after attention."""
    _ffn_norm, *experts = mixture(name, format_, down, 32, EXPERTS["expert_count"])
    return [*experts, *shared_expert(name, format_, down, WIDTHS["expert_shared_feed_forward_length"])]


def qwen35_q4_k_m() -> ModelSpec:
    """Qwen3.5: every second layer has attention; the last block predicts further tokens and is none of the network."""
    words = byte_level("qwen35", "<|endoftext|>", "<|im_start|>", "<|im_end|>", defined=("<think>", "</think>"))
    vocab_size = len(words.tokens)
    tensors = [
        *tied(vocab_size, "Q8_0"),
        *delta_net("blk.0", "Q5_0", 2, 4),
        *feed_forward("blk.0", "Q5_0", "Q6_K", 256),
        *gated_attention("blk.1", "Q5_0"),
        *feed_forward("blk.1", "Q5_0", "Q4_K", 256),
        norm("output_norm", HIDDEN),
        *gated_attention("blk.2", "Q5_0"),
        *feed_forward("blk.2", "Q5_0", "Q4_K", 256),
        matrix("blk.2.nextn.eh_proj", "Q5_0", HIDDEN, 2 * HIDDEN),
        *(norm(f"blk.2.nextn.{part}", HIDDEN) for part in ("enorm", "hnorm", "shared_head_norm")),
    ]
    pattern = {"block_count": 3, "nextn_predict_layers": 1, "full_attention_interval": 2}
    sections = {"rope.dimension_sections": [2, 1, 1, 0]}
    settings = keys(256, 4, 2) | LENGTHS | delta_net_keys(2, 4) | pattern | sections
    ids = {"bos": vocab_size - 5, "eos": vocab_size - 3, "padding": vocab_size - 5, "add_bos": False}
    return ModelSpec("qwen35", "Small Qwen3.5", LlamaFileType.MOSTLY_Q4_K_M, settings, words, ids, CHATML, tensors)


def qwen35moe_q4_0() -> ModelSpec:
    """Qwen3.5-MoE: two delta nets, then attention, as an array says; experts of which one is shared."""
    words = byte_level("qwen35", "<|endoftext|>", "<|im_start|>", "<|im_end|>", defined=("<think>", "</think>"))
    vocab_size = len(words.tokens)
    tensors = [
        *embedding_and_head(vocab_size, "Q4_0", "Q8_0"),
        *delta_net("blk.0", "Q4_0", 1, 2),
        *shared_mixture("blk.0", "Q4_0", "Q4_0"),
        *delta_net("blk.1", "Q4_0", 1, 2),
        *shared_mixture("blk.1", "Q4_0", "Q4_0"),
        *gated_attention("blk.2", "Q4_0", heads=2),
        *shared_mixture("blk.2", "Q4_0", "Q8_0"),
        norm("output_norm", HIDDEN),
    ]
    pattern = {"block_count": 3, "attention.recurrent_layers": [True, True, False], "full_attention_interval": 4}
    sections = {"rope.dimension_sections": [2, 1, 1, 0]}
    settings = keys(96, 2, 1) | LENGTHS | delta_net_keys(1, 2) | pattern | sections | EXPERTS | WIDTHS
    del settings["feed_forward_length"]  # as in published files
    ids = {"bos": vocab_size - 5, "eos": vocab_size - 3, "padding": vocab_size - 5, "add_bos": False}
    return ModelSpec("qwen35moe", "Small Qwen3.5-MoE", LlamaFileType.MOSTLY_Q4_0, settings, words, ids, CHATML, tensors)


def qwen3next_q8_0() -> ModelSpec:
    """Qwen3-Next: value heads that are neighbours share queries and keys; beta and alpha are one tensor."""
    words = byte_level("qwen2", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocab_size = len(words.tokens)
    tensors = [
        *tied(vocab_size, "Q8_0"),
        *delta_net("blk.0", "Q8_0", 2, 4, fused=True),
        *shared_mixture("blk.0", "Q8_0", "Q8_0"),
        *gated_attention("blk.1", "Q8_0"),
        *shared_mixture("blk.1", "Q8_0", "Q8_0"),
        norm("output_norm", HIDDEN),
    ]
    settings = keys(96, 4, 2) | LENGTHS | delta_net_keys(2, 4) | {"full_attention_interval": 2} | EXPERTS | WIDTHS
    ids = {"bos": vocab_size - 3, "eos": vocab_size - 1, "padding": vocab_size - 3, "add_bos": False}
    return ModelSpec("qwen3next", "Small Qwen3-Next", LlamaFileType.MOSTLY_Q8_0, settings, words, ids, CHATML, tensors)


def lfm2_q5_1() -> ModelSpec:
    """LFM2: two short convolutions and attention between them; the last norm has another's name."""
    words = byte_level("lfm2", "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocab_size = len(words.tokens)

    def network(name: str) -> list[TensorSpec]:
        return [norm(f"{name}.ffn_norm", HIDDEN), *feed_forward(name, "Q5_1", "Q5_1", 96)]

    def convolution(name: str) -> list[TensorSpec]:
        return [
            norm(f"{name}.attn_norm", HIDDEN),
            matrix(f"{name}.shortconv.in_proj", "Q5_1", 3 * HIDDEN, HIDDEN, gain=1.5),
            TensorSpec(f"{name}.shortconv.conv.weight", "F32", (HIDDEN, 3), deviation=0.7),
            matrix(f"{name}.shortconv.out_proj", "Q5_1", HIDDEN, HIDDEN),
            *network(name),
        ]

    tensors = [
        *tied(vocab_size, "Q8_0"),
        norm("token_embd_norm", HIDDEN),
        *convolution("blk.0"),
        *attention("blk.1", "Q5_1", head_norms=True),
        *network("blk.1"),
        *convolution("blk.2"),
    ]
    settings = keys(96, 2, 1) | {"rope.freq_base": 1e6, "shortconv.l_cache": 3, "vocab_size": vocab_size}
    settings |= {"block_count": 3, "attention.head_count_kv": [0, 1, 0]}
    ids = {"bos": vocab_size - 4, "eos": vocab_size - 1, "padding": vocab_size - 5}
    return ModelSpec("lfm2", "Small LFM2", LlamaFileType.MOSTLY_Q5_1, settings, words, ids, BOS_CHATML, tensors)


def muse_glimmer_q4_0() -> ModelSpec:
    """Muse Glimmer: a window of 16 on three of four layers, which alone are rotated; gates and norms of attention."""
    words = byte_level("gpt-4o", "<|begin_of_text|>", "<|end_of_text|>", "<|turn|>", "<|eot|>")
    vocab_size = len(words.tokens)

    def layer(name: str) -> list[TensorSpec]:
        return [
            *attention(name, "Q4_0", head_norms=True),
            matrix(f"{name}.attn_gate", "Q4_0", 2 * HEAD_DIM, HIDDEN, gain=2),
            norm(f"{name}.post_attention_norm", HIDDEN),
            norm(f"{name}.ffn_norm", HIDDEN),
            *feed_forward(name, "Q4_0", "Q4_0", 64),
            norm(f"{name}.post_ffw_norm", HIDDEN),
        ]

    tensors = [
        *embedding_and_head(vocab_size, "Q4_0", "Q8_0"),
        *(tensor for number in range(4) for tensor in layer(f"blk.{number}")),
        norm("output_norm", HIDDEN),
    ]
    settings = (
        keys(64, 2, 1)
        | LENGTHS
        | {
            "block_count": 4,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": [True, True, True, False],
            "rope.freq_base": 5e5,
            "logit_scale": 1.25,
            "final_logit_softcapping": 12.0,
        }
    )
    ids = {"bos": vocab_size - 4, "eos": vocab_size - 3, "eot": vocab_size - 1}
    return ModelSpec(
        "muse-glimmer", "Small Muse Glimmer", LlamaFileType.MOSTLY_Q4_0, settings, words, ids, MUSE_CHAT, tensors
    )
