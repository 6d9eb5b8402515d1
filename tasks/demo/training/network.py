"""The demo model's forward pass in PyTorch: the qwen2 architecture as a function of named tensors.

The parameters are one ``dict`` under GGUF's tensor names, so the file is written, and read back for checking,
without a table of renamings. Architecture: Qwen2 (arXiv:2407.10671): RMSNorm, rotary positions with split halves
(neox), grouped-query attention with biases on Q, K and V, SwiGLU, embedding and output matrix shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch  # type: ignore[import-not-found,unused-ignore]
import torch.nn.functional as F  # type: ignore[import-not-found,unused-ignore] # noqa: N812
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network. ``hidden`` and ``ffn`` are multiples of 256, a K-quant's block."""

    vocab: int
    hidden: int = 256
    ffn: int = 1024
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    context: int = 1024
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6


def new_parameters(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Random float32 parameters; a matrix is ``[outputs, inputs]``."""

    def normal(rows: int, columns: int, std: float = 0.02) -> Tensor:
        return torch.empty(rows, columns).normal_(0.0, std, generator=generator)

    residual_std = 0.02 / (2 * shape.layers) ** 0.5  # GPT-2's scaling: the sum over layers keeps its variance
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    parameters = {"token_embd.weight": normal(shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        block = {
            "attn_norm.weight": torch.ones(shape.hidden),
            "attn_q.weight": normal(queries, shape.hidden),
            "attn_q.bias": torch.zeros(queries),
            "attn_k.weight": normal(keys, shape.hidden),
            "attn_k.bias": torch.zeros(keys),
            "attn_v.weight": normal(keys, shape.hidden),
            "attn_v.bias": torch.zeros(keys),
            "attn_output.weight": normal(shape.hidden, queries, residual_std),
            "ffn_norm.weight": torch.ones(shape.hidden),
            "ffn_gate.weight": normal(shape.ffn, shape.hidden),
            "ffn_up.weight": normal(shape.ffn, shape.hidden),
            "ffn_down.weight": normal(shape.hidden, shape.ffn, residual_std),
        }
        parameters |= {f"blk.{layer}.{name}": tensor for name, tensor in block.items()}
    return parameters | {"output_norm.weight": torch.ones(shape.hidden)}


def rotate(x: Tensor, base: float) -> Tensor:
    """Rotary position embedding (arXiv:2104.09864) of ``x [batch, heads, length, head]`` at positions 0, 1, 2 ..."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    low, high = x[..., :half], x[..., half:]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def final_hidden(parameters: dict[str, Tensor], shape: Shape, ids: Tensor, dropout: float = 0.0) -> Tensor:
    """Normalised hidden states ``[batch, length, hidden]`` of ``ids [batch, length]``, padding on the right."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (shape.hidden,), parameters[name], shape.norm_eps)

    def drop(x: Tensor) -> Tensor:
        return F.dropout(x, dropout, training=dropout > 0)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))

    def heads(x: Tensor, count: int) -> Tensor:
        return x.unflatten(-1, (count, shape.head)).transpose(1, 2)

    length = ids.shape[1]
    future = torch.full((length, length), float("-inf"), device=ids.device).triu(1)
    x = drop(F.embedding(ids, parameters["token_embd.weight"]))
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        normed = norm(x, f"{block}.attn_norm.weight")
        q = rotate(heads(linear(normed, f"{block}.attn_q"), shape.heads), shape.rope_base)
        k = rotate(heads(linear(normed, f"{block}.attn_k"), shape.kv_heads), shape.rope_base)
        v = heads(linear(normed, f"{block}.attn_v"), shape.kv_heads)
        group = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # Spelled out: at these lengths it is several times faster on a CPU than the fused operator's backward pass.
        scores = (q @ k.transpose(-1, -2)) * shape.head**-0.5 + future
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"{block}.attn_output")
        normed = norm(x, f"{block}.ffn_norm.weight")
        gated = F.silu(linear(normed, f"{block}.ffn_gate")) * linear(normed, f"{block}.ffn_up")
        x = x + drop(linear(gated, f"{block}.ffn_down"))
    return norm(x, "output_norm.weight")


def logits(parameters: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """Next-token logits ``[..., vocab]`` of ``hidden [..., hidden]``, through the shared embedding matrix."""
    return F.linear(hidden, parameters["token_embd.weight"])
