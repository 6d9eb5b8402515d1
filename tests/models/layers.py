"""The tensors of the small models, layer by layer: as each family has them, two layers 32 wide.

The random weights are drawn so large that logits deviate by about three, as those of trained models do: then the
likeliest token differs from context to context and is seldom a near tie.
"""

from __future__ import annotations

from typing import Any

from tests.bench.model_specs import TensorSpec, norm

HIDDEN = 32
HEAD_DIM = 16
CONTEXT_LENGTH = 256


def keys(ffn: int, heads: int, kv_heads: int, *, norm_epsilon: str = "layer_norm_rms_epsilon") -> dict[str, Any]:
    """The metadata keys of every family."""
    return {
        "block_count": 2,
        "context_length": CONTEXT_LENGTH,
        "embedding_length": HIDDEN,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        f"attention.{norm_epsilon}": 1e-5,
    }


def matrix(name: str, format_: str, *shape: int, gain: float = 1.0) -> TensorSpec:
    """A matrix, or the experts' matrices, that makes what goes through it ``gain`` times as large."""
    return TensorSpec(f"{name}.weight", format_, shape, deviation=gain * shape[-1] ** -0.5)


def biased(name: str, format_: str, *shape: int, gain: float = 1.0) -> tuple[TensorSpec, TensorSpec]:
    """A `matrix` with a bias for each output."""
    return matrix(name, format_, *shape, gain=gain), TensorSpec(f"{name}.bias", "F32", shape[:-1], deviation=0.3)


def layer_norm(name: str) -> tuple[TensorSpec, TensorSpec]:
    """A norm that adds a bias."""
    return norm(name, HIDDEN), TensorSpec(f"{name}.bias", "F32", (HIDDEN,), deviation=0.1)


def rope_factors(name: str, num_pairs: int, mean: float) -> TensorSpec:
    """What rotary frequencies are divided by."""
    return TensorSpec(f"{name}.weight", "F32", (num_pairs,), mean=mean, deviation=0.1 * mean)


def embedding_and_head(vocab_size: int, embedding: str, head: str) -> list[TensorSpec]:
    """Two matrices, in formats of their own."""
    return [
        matrix("token_embd", embedding, vocab_size, HIDDEN, gain=4),
        matrix("output", head, vocab_size, HIDDEN, gain=3),
    ]


def tied(vocab_size: int, format_: str) -> list[TensorSpec]:
    """One matrix that is the embedding and the head."""
    return [matrix("token_embd", format_, vocab_size, HIDDEN, gain=3)]


def attention(
    name: str, format_: str, *, heads: int = 2, bias: bool = False, head_norms: bool = False, output: str | None = None
) -> list[TensorSpec]:
    """The attention of a layer of the Llama kind; two heads share their keys and values. ``output``: another format."""

    def projection(part: str, num_outputs: int, gain: float = 1.0) -> tuple[TensorSpec, ...]:
        both = biased(f"{name}.attn_{part}", format_, num_outputs, HIDDEN, gain=gain)
        return both if bias else both[:1]

    return [
        norm(f"{name}.attn_norm", HIDDEN),
        *projection("q", heads * HEAD_DIM, gain=3),
        *projection("k", heads // 2 * HEAD_DIM, gain=3),
        *projection("v", heads // 2 * HEAD_DIM),
        *(TensorSpec(f"{name}.attn_{part}_norm.weight", "F32", (HEAD_DIM,), 2.0, 0.1) for part in "qk" if head_norms),
        matrix(f"{name}.attn_output", output or format_, HIDDEN, heads * HEAD_DIM, gain=2),
    ]


def llama_layer(
    name: str,
    format_: str,
    down: str,
    ffn: int,
    *,
    heads: int = 2,
    bias: bool = False,
    head_norms: bool = False,
    output: str | None = None,
) -> list[TensorSpec]:
    """A layer of the Llama kind; ``down`` is the last matrix's format, ``output`` that of attention's."""
    return [
        *attention(name, format_, heads=heads, bias=bias, head_norms=head_norms, output=output),
        norm(f"{name}.ffn_norm", HIDDEN),
        matrix(f"{name}.ffn_gate", format_, ffn, HIDDEN, gain=2),
        matrix(f"{name}.ffn_up", format_, ffn, HIDDEN),
        matrix(f"{name}.ffn_down", down, HIDDEN, ffn, gain=2),
    ]


def mixture(name: str, format_: str, down: str, ffn: int, experts: int) -> list[TensorSpec]:
    """A feed-forward of experts, without biases."""
    return [
        norm(f"{name}.ffn_norm", HIDDEN),
        matrix(f"{name}.ffn_gate_inp", "F32", experts, HIDDEN, gain=2),
        matrix(f"{name}.ffn_gate_exps", format_, experts, ffn, HIDDEN, gain=2),
        matrix(f"{name}.ffn_up_exps", format_, experts, ffn, HIDDEN, gain=2),
        matrix(f"{name}.ffn_down_exps", down, experts, HIDDEN, ffn, gain=2),
    ]


def shared_expert(name: str, format_: str, down: str, ffn: int) -> list[TensorSpec]:
    """The network beside a mixture that every token goes through, and the vector that gates its output."""
    return [
        TensorSpec(f"{name}.ffn_gate_inp_shexp.weight", "F32", (HIDDEN,), deviation=2 * HIDDEN**-0.5),
        matrix(f"{name}.ffn_gate_shexp", format_, ffn, HIDDEN, gain=2),
        matrix(f"{name}.ffn_up_shexp", format_, ffn, HIDDEN, gain=2),
        matrix(f"{name}.ffn_down_shexp", down, HIDDEN, ffn, gain=2),
    ]


def glm4_layer(name: str, format_: str, ffn: int) -> list[TensorSpec]:
    """A layer with norms after attention and feed-forward; gate and up are one matrix."""
    return [
        *attention(name, format_, bias=True),
        norm(f"{name}.post_attention_norm", HIDDEN),
        norm(f"{name}.ffn_norm", HIDDEN),
        matrix(f"{name}.ffn_up", format_, 2 * ffn, HIDDEN, gain=1.5),
        matrix(f"{name}.ffn_down", format_, HIDDEN, ffn, gain=2),
        norm(f"{name}.post_ffw_norm", HIDDEN),
    ]


def phi3_layer(name: str, format_: str, down: str, ffn: int) -> list[TensorSpec]:
    """A layer with Q, K and V in one matrix, and gate and up in one."""
    return [
        norm(f"{name}.attn_norm", HIDDEN),
        matrix(f"{name}.attn_qkv", format_, 3 * HIDDEN, HIDDEN, gain=2.5),
        matrix(f"{name}.attn_output", format_, HIDDEN, HIDDEN, gain=2),
        norm(f"{name}.ffn_norm", HIDDEN),
        matrix(f"{name}.ffn_up", format_, 2 * ffn, HIDDEN, gain=1.5),
        matrix(f"{name}.ffn_down", down, HIDDEN, ffn, gain=2),
    ]


def gpt2_layer(name: str, format_: str) -> list[TensorSpec]:
    """A layer with biases everywhere."""
    return [
        *layer_norm(f"{name}.attn_norm"),
        *biased(f"{name}.attn_qkv", format_, 3 * HIDDEN, HIDDEN, gain=2.5),
        *biased(f"{name}.attn_output", format_, HIDDEN, HIDDEN, gain=2),
        *layer_norm(f"{name}.ffn_norm"),
        *biased(f"{name}.ffn_up", format_, 4 * HIDDEN, HIDDEN, gain=2),
        *biased(f"{name}.ffn_down", format_, HIDDEN, 4 * HIDDEN, gain=2),
    ]


def gpt_oss_layer(name: str, heads: int, ffn: int, experts: int) -> list[TensorSpec]:
    """A layer with attention sinks and experts; the experts are MXFP4, what is dense Q8_0."""
    return [
        norm(f"{name}.attn_norm", HIDDEN),
        *biased(f"{name}.attn_q", "Q8_0", heads * HEAD_DIM, HIDDEN, gain=3),
        *biased(f"{name}.attn_k", "Q8_0", heads // 2 * HEAD_DIM, HIDDEN, gain=3),
        *biased(f"{name}.attn_v", "Q8_0", heads // 2 * HEAD_DIM, HIDDEN),
        *biased(f"{name}.attn_output", "Q8_0", HIDDEN, heads * HEAD_DIM, gain=2),
        TensorSpec(f"{name}.attn_sinks.weight", "F32", (heads,), deviation=1.0),
        norm(f"{name}.post_attention_norm", HIDDEN),
        *biased(f"{name}.ffn_gate_inp", "F32", experts, HIDDEN, gain=2),
        *biased(f"{name}.ffn_gate_exps", "MXFP4", experts, ffn, HIDDEN, gain=2),
        *biased(f"{name}.ffn_up_exps", "MXFP4", experts, ffn, HIDDEN, gain=2),
        *biased(f"{name}.ffn_down_exps", "MXFP4", experts, HIDDEN, ffn, gain=2),
    ]


def gemma_layer(
    name: str, format_: str, ffn: int, head_dim: int, *, head_norms: bool = False, values: bool = True
) -> list[TensorSpec]:
    """A layer with norms before and after each block, of two long heads; without ``values`` keys are values, too."""

    def own_norm(part: str, width: int, mean: float = 1.0) -> TensorSpec:
        return TensorSpec(f"{name}.{part}.weight", "F32", (width,), mean, 0.1)

    return [
        own_norm("attn_norm", HIDDEN),
        matrix(f"{name}.attn_q", format_, 2 * head_dim, HIDDEN, gain=1.5),
        matrix(f"{name}.attn_k", format_, head_dim, HIDDEN, gain=1.5),
        *([matrix(f"{name}.attn_v", format_, head_dim, HIDDEN)] if values else []),
        *(own_norm(f"attn_{part}_norm", head_dim, 1.5) for part in "qk" if head_norms),
        matrix(f"{name}.attn_output", format_, HIDDEN, 2 * head_dim),
        own_norm("post_attention_norm", HIDDEN, 3.0),
        own_norm("ffn_norm", HIDDEN),
        matrix(f"{name}.ffn_gate", format_, ffn, HIDDEN),
        matrix(f"{name}.ffn_up", format_, ffn, HIDDEN),
        matrix(f"{name}.ffn_down", format_, HIDDEN, ffn),
        own_norm("post_ffw_norm", HIDDEN, 3.0),
    ]
