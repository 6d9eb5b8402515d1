"""Every op by name: what it takes, and the function that does it on CUDA and in NumPy.

An op is one line of `CudaOps`, one of `ReferenceOps` and one method of `Ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import kernels.reference.attention
import kernels.reference.decode_step
import kernels.reference.embedding
import kernels.reference.matmul
import kernels.reference.moe
import kernels.reference.norm
import kernels.reference.rope
import kernels.reference.sampling
from kernels.batch import Adjustments, AnyArray, LayerCache, SamplingParams, Step
from kernels.decode_rows import DecodeRows
from kernels.ops import (
    activation,
    attention,
    attention_plan,
    decode_step,
    embedding,
    matmul,
    moe,
    norm,
    rope,
    sampling,
)
from kernels.runtime.compiler import Variant
from kernels.runtime.launcher import Context
from kernels.weights import repack
from kernels.weights.parameters import AnyExperts, AnyMatrix, AnyProjection, Attention, Norm, Rope, Router

MODULES: tuple[ModuleType, ...] = (
    activation,
    attention,
    attention_plan,
    decode_step,
    matmul,
    moe,
    norm,
    repack,
    rope,
    sampling,
)
"""The modules that launch kernels of their own."""

AnyRotation = Any
"""What `Ops.rotation` gives."""
AnyAttentionPlan = Any
"""What `Ops.plan_attention` gives."""

P = ParamSpec("P")
R = TypeVar("R")


class Ops(Protocol):
    """What a model and an engine compute with; shapes and types are told where the functions are.

    Arrays and weights are those of one device. ``out`` arrays come last and by name, and a row's result never depends
    on the other rows of a call.
    """

    def embed(self, token_ids: AnyArray, table: AnyMatrix, *, out: AnyArray) -> None:
        """Rows of a table."""

    def embed_positions(
        self,
        token_ids: AnyArray,
        table: AnyMatrix,
        positions: AnyArray,
        position_table: AnyMatrix,
        *,
        out: AnyArray,
    ) -> None:
        """`embed` plus a learned embedding of each token's position."""

    def rotation(
        self, positions: AnyArray, rope: Rope, sequence_lengths: AnyArray, sequence_rows: AnyArray
    ) -> AnyRotation:
        """Cosines and sines of a step's tokens, for all layers."""

    def rope_write(
        self,
        qkv: AnyArray,
        slots: AnyArray,
        by: AnyRotation | None,
        attention: Attention,
        *,
        out_cache: LayerCache,
    ) -> None:
        """Rotate Q and K, and store K and V."""

    def plan_attention(self, step: Step, attention: Attention) -> AnyAttentionPlan:
        """Share a step's attention out, once for all layers of one window."""

    def paged_attention(
        self,
        qkv: AnyArray,
        cache: LayerCache,
        attention: Attention,
        step: Step,
        plan: AnyAttentionPlan,
        *,
        out: AnyArray,
    ) -> None:
        """softmax(q k^T * scale) v for every token over its own sequence's cache."""

    def rope_attention(
        self,
        qkv: AnyArray,
        by: AnyRotation | None,
        attention: Attention,
        step: Step,
        plan: AnyAttentionPlan,
        *,
        out_cache: LayerCache,
        out: AnyArray,
    ) -> None:
        """`rope_write` of the step's tokens, then `paged_attention`."""

    def linear(self, x: AnyArray, layers: AnyProjection, *, out: AnyArray) -> None:
        """Projections of ``x``, side by side."""

    def linear_residual(self, x: AnyArray, layers: AnyProjection, *, out: AnyArray) -> None:
        """Projections of ``x``, added to the residual stream."""

    def norm_linear(self, x: AnyArray, norm: Norm, layers: AnyProjection, *, out: AnyArray) -> None:
        """Norm, then projections side by side."""

    def norm_swiglu(self, x: AnyArray, norm: Norm, gate_up: AnyProjection, *, out: AnyArray) -> None:
        """Norm, gate and up projection, SwiGLU."""

    def norm_gelu(self, x: AnyArray, norm: Norm, up: AnyProjection, *, out: AnyArray) -> None:
        """Norm, up projection, GELU."""

    def norm_moe_residual(
        self,
        x: AnyArray,
        norm: Norm,
        router: Router,
        experts: AnyExperts,
        alpha: float,
        limit: float,
        *,
        out: AnyArray,
    ) -> None:
        """Norm, router, and the sum of each token's best experts, added to the residual stream."""

    def norm_head(self, x: AnyArray, rows: AnyArray, norm: Norm, head: AnyProjection, *, out: AnyArray) -> None:
        """Norm and output head of some rows: their logits."""

    def adjust_logits(self, logits: AnyArray, adjustments: Adjustments, *, out: AnyArray) -> None:
        """Biases, penalties and banned ids."""

    def sample(self, logits: AnyArray, params: SamplingParams, *, out_ids: AnyArray) -> None:
        """Draw one token id a row; -1 where the logits are not finite."""

    def top_log_probabilities(
        self,
        logits: AnyArray,
        ids: AnyArray,
        num_top: int,
        *,
        out_logprobs: AnyArray,
        out_top_ids: AnyArray,
        out_top_logprobs: AnyArray,
    ) -> None:
        """Log probabilities of ``ids`` and of the ``num_top`` most probable ones of each row."""

    def begin_decode(self, rows: DecodeRows, num_rows: int, block_tokens: int) -> None:
        """Make the first ``num_rows`` rows the next decode step."""

    def resolve_tokens(self, token_ids: AnyArray, drawn: AnyArray) -> None:
        """Put the ids that the previous step drew where a step's ``token_ids`` refer to them."""


class CudaOps:
    """The ops on CUDA, on one context, which may be dry."""

    def __init__(self, context: Context) -> None:
        self.embed = _bind(context, embedding.embed)
        self.embed_positions = _bind(context, embedding.embed_positions)
        self.rotation = _bind(context, rope.rotation)
        self.rope_write = _bind(context, rope.rope_write)
        self.plan_attention = _bind(context, attention_plan.plan_attention)
        self.paged_attention = _bind(context, attention.paged_attention)
        self.rope_attention = _bind(context, attention.rope_attention)
        self.linear = _bind(context, matmul.linear)
        self.linear_residual = _bind(context, matmul.linear_residual)
        self.norm_linear = _bind(context, matmul.norm_linear)
        self.norm_swiglu = _bind(context, matmul.norm_swiglu)
        self.norm_gelu = _bind(context, matmul.norm_gelu)
        self.norm_moe_residual = _bind(context, moe.norm_moe_residual)
        self.norm_head = _bind(context, matmul.norm_head)
        self.adjust_logits = _bind(context, sampling.adjust_logits)
        self.sample = _bind(context, sampling.sample)
        self.top_log_probabilities = _bind(context, sampling.top_log_probabilities)
        self.begin_decode = _bind(context, decode_step.begin_decode)
        self.resolve_tokens = _bind(context, decode_step.resolve_tokens)


class ReferenceOps:
    """The ops in NumPy: what the others are compared with, and all that the CPU device has."""

    def __init__(self) -> None:
        self.embed = kernels.reference.embedding.embed
        self.embed_positions = kernels.reference.embedding.embed_positions
        self.rotation = kernels.reference.rope.rotation
        self.rope_write = kernels.reference.rope.rope_write
        self.plan_attention = kernels.reference.attention.plan_attention
        self.paged_attention = kernels.reference.attention.paged_attention
        self.rope_attention = kernels.reference.attention.rope_attention
        self.linear = kernels.reference.matmul.linear
        self.linear_residual = kernels.reference.matmul.linear_residual
        self.norm_linear = kernels.reference.norm.norm_linear
        self.norm_swiglu = kernels.reference.norm.norm_swiglu
        self.norm_gelu = kernels.reference.norm.norm_gelu
        self.norm_moe_residual = kernels.reference.moe.norm_moe_residual
        self.norm_head = kernels.reference.norm.norm_head
        self.adjust_logits = kernels.reference.sampling.adjust_logits
        self.sample = kernels.reference.sampling.sample
        self.top_log_probabilities = kernels.reference.sampling.top_log_probabilities
        self.begin_decode = kernels.reference.decode_step.begin_decode
        self.resolve_tokens = kernels.reference.decode_step.resolve_tokens


def _bind(context: Context, function: Callable[Concatenate[Context, P], R]) -> Callable[P, R]:
    """``function`` on ``context``.

    What it took of the scratch memory is free again when it returns nothing: later kernels run after its own, so they
    may use the same memory.
    """

    @wraps(function)
    def op(*arguments: P.args, **options: P.kwargs) -> R:
        mark = context.mark()
        result = function(context, *arguments, **options)
        if result is None:
            context.release(mark)
        return result

    return op


def variants() -> list[Variant]:
    """Every variant that the ops can launch, each once."""
    seen: dict[tuple[object, ...], Variant] = {}
    for module in MODULES:
        for source, defines in module.variants():
            seen[source, *sorted(defines.items())] = (source, defines)
    return list(seen.values())


def common_variants() -> list[Variant]:
    """Those that depend on no model."""
    return [(source, defines) for source, defines in variants() if not defines]
