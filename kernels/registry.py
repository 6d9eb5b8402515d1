"""Every op by name: what it takes, and the function that does it on CUDA and in NumPy.

An op is one line of `CudaOps`, one of `ReferenceOps` and one method of `Ops`, to which type checkers hold both tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import kernels.reference.activation
import kernels.reference.attention
import kernels.reference.convolution
import kernels.reference.decode_layers
import kernels.reference.decode_step
import kernels.reference.delta_net
import kernels.reference.embedding
import kernels.reference.matmul
import kernels.reference.moe
import kernels.reference.norm
import kernels.reference.rope
import kernels.reference.sampling
from kernels.batch import AnyArray, HostIds, LayerCache, LayerState, LogitEdits, SamplingParams, Step
from kernels.decode_rows import DecodeRows
from kernels.logit_edits import EditResets
from kernels.weights.parameters import Attention, Clamp, DeltaNet, DenseModel, Geglu, LayersSupport, Norm, Rope

if TYPE_CHECKING:
    from kernels.runtime.launcher import Context

# What has another type on each device.
Array = TypeVar("Array", bound=AnyArray)
Matrix = TypeVar("Matrix", contravariant=True)
Projection = TypeVar("Projection", contravariant=True)
Router = TypeVar("Router", contravariant=True)
Experts = TypeVar("Experts", contravariant=True)
Angles = TypeVar("Angles")  # what `Ops.rotation` gives
AttentionPlan = TypeVar("AttentionPlan")  # what `Ops.plan_attention` gives


class Ops(Protocol[Array, Matrix, Projection, Router, Experts, Angles, AttentionPlan]):
    """What a model and an engine compute with; shapes and types are told where the functions are.

    Arrays and weights are those of one device. ``out`` arrays come last and by name, and a row's result never depends
    on the other rows of a call.
    """

    def embed(self, token_ids: Array, table: Matrix, *, scale: float = 1.0, out: Array) -> None:
        """Rows of a table, scaled."""

    def embed_positions(
        self, token_ids: Array, table: Matrix, positions: Array, position_table: Matrix, *, out: Array
    ) -> None:
        """`embed` plus a learned embedding of each token's position."""

    def rotation(self, positions: Array, rope: Rope[Array], sequence_lengths: Array, sequence_rows: Array) -> Angles:
        """Cosines and sines of a step's tokens, for all layers."""

    def rope_write(
        self, qkv: Array, slots: Array, by: Angles | None, attention: Attention[Array], *, out_cache: LayerCache[Array]
    ) -> None:
        """Rotate Q and K, and store K and V."""

    def plan_attention(self, step: Step[Array], attention: Attention[Array]) -> AttentionPlan:
        """Share a step's attention out, once for all layers of one window."""

    def paged_attention(
        self,
        qkv: Array,
        cache: LayerCache[Array],
        attention: Attention[Array],
        step: Step[Array],
        plan: AttentionPlan,
        *,
        out: Array,
    ) -> None:
        """softmax(q k^T * scale) v for every token over its own sequence's cache."""

    def rope_attention(
        self,
        qkv: Array,
        by: Angles | None,
        attention: Attention[Array],
        step: Step[Array],
        plan: AttentionPlan,
        *,
        out_cache: LayerCache[Array],
        out: Array,
    ) -> None:
        """`rope_write` of the step's tokens, then `paged_attention`."""

    def linear(self, x: Array, layers: Projection, *, out: Array) -> None:
        """Projections of ``x``, side by side."""

    def linear_residual(self, x: Array, layers: Projection, *, scale: float = 1.0, out: Array) -> None:
        """Projections of ``x``, scaled and added to the residual stream."""

    def norm_stream(self, x: Array, norm: Norm[Array], *, out: Array) -> None:
        """Norm of each row, as float32."""

    def linear_norm_residual(
        self, x: Array, layers: Projection, norm: Norm[Array], *, scale: float = 1.0, out: Array
    ) -> None:
        """Projections of ``x``, normed and added to the residual stream, which is then scaled."""

    def norm_branches(
        self,
        a: Array,
        norm_a: Norm[Array],
        b: Array,
        norm_b: Norm[Array],
        norm: Norm[Array],
        *,
        scale: float = 1.0,
        out: Array,
    ) -> None:
        """Norm of the sum of two normed branches, added to the residual stream, which is then scaled."""

    def norm_linear(self, x: Array, norm: Norm[Array], layers: Projection, *, out: Array) -> None:
        """Norm, then projections side by side."""

    def norm_swiglu(self, x: Array, norm: Norm[Array], gate_up: Projection, *, out: Array) -> None:
        """Norm, gate and up projection, SwiGLU."""

    def norm_geglu(self, x: Array, norm: Norm[Array], gate_up: Projection, scale: float, *, out: Array) -> None:
        """Norm, gate and up projection, GEGLU times ``scale``."""

    def geglu_columns(
        self, gates: Array, inputs: Array, column: int, gate_scale: float, scale: float, *, out: Array
    ) -> None:
        """GEGLU of gates and some columns of what they let through."""

    def gate(self, x: Array, gates: Array, *, out: Array) -> None:
        """What attention found, through sigmoid gates."""

    def narrow(self, x: Array, scale: float, *, out: Array) -> None:
        """``x``, scaled, in the type of activations."""

    def norm_gelu(self, x: Array, norm: Norm[Array], up: Projection, *, out: Array) -> None:
        """Norm, up projection, GELU."""

    def short_convolution(
        self, projected: Array, taps: Array, step: Step[Array], *, out_state: LayerState[Array], out: Array
    ) -> None:
        """A gated short convolution over each sequence."""

    def gated_delta_net(
        self, projected: Array, net: DeltaNet[Array], step: Step[Array], *, out_state: LayerState[Array], out: Array
    ) -> None:
        """Convolution, delta rule and gated norm over each sequence."""

    def norm_moe_residual(
        self,
        x: Array,
        norm: Norm[Array],
        router: Router,
        experts: Experts,
        gating: Clamp | Geglu | None,
        *,
        adds: bool = True,
        out: Array,
    ) -> None:
        """Norm, router, and the sum of each token's best experts, added to the residual stream or stored."""

    def decode_layers_support(self, model: DenseModel[Array, Matrix, Projection]) -> LayersSupport:
        """Of how many tokens `decode_layers` is for the model and faster than ops, and what it needs besides."""

    def decode_layers(
        self,
        model: DenseModel[Array, Matrix, Projection],
        step: Step[Array],
        *,
        words: Array,
        out_caches: Sequence[LayerCache[Array]],
        out: Array,
    ) -> None:
        """Logits of a step of few sequences with a token each: embedding, all layers, norm and output head."""

    def norm_head(
        self, x: Array, rows: Array, norm: Norm[Array], head: Projection, *, softcap: float = 0.0, out: Array
    ) -> None:
        """Norm and output head of some rows: their logits, within a soft cap."""

    def reset_edits(self, edits: LogitEdits[Array], resets: EditResets[Array]) -> None:
        """Begin rows of what changes logits before a draw."""

    def mask_logits(self, logits: Array, numbers: Array, masks: Array, *, out: Array) -> None:
        """Leave of rows what their masks allow."""

    def sample(self, logits: Array, params: SamplingParams[Array], *, out_ids: Array, host_ids: HostIds = None) -> None:
        """Edit logits where they are, and draw one token id a row; -1 where they are not finite."""

    def top_log_probabilities(
        self,
        logits: Array,
        ids: Array,
        params: SamplingParams[Array],
        *,
        out_logprobs: Array,
        out_top_ids: Array,
        out_top_logprobs: Array,
    ) -> None:
        """Log probabilities of ``ids``, and of as many of the most probable ones of each row as ``params`` ask for."""

    def begin_decode(self, rows: DecodeRows[Array], num_rows: int, block_tokens: int) -> None:
        """Make the first ``num_rows`` rows the next decode step."""

    def resolve_tokens(self, token_ids: Array, drawn: Array) -> None:
        """Put the ids that the previous step drew where a step's ``token_ids`` refer to them."""

    def select_step(self, step: Step[Array]) -> Step[Array]:
        """The step of the tokens with logits alone."""

    def select_rows(self, x: Array, rows: Array, num_columns: int) -> Array:
        """The first columns of some rows."""


class CudaOps:
    """The ops on CUDA, on one context, which may be dry. They are imported here only: the CPU device needs none."""

    def __init__(self, context: Context) -> None:
        from kernels.ops import activation, attention, attention_plan, decode_step, embedding, matmul, moe, norm, rope
        from kernels.ops.decode_layers import decode_layers
        from kernels.ops.layers import convolution, delta_net
        from kernels.ops.sampling import mask_logits, reset_edits, sample, top_log_probabilities
        from kernels.runtime.launcher import bind

        self.embed = bind(context, embedding.embed)
        self.embed_positions = bind(context, embedding.embed_positions)
        self.rotation = bind(context, rope.rotation)
        self.rope_write = bind(context, rope.rope_write)
        self.plan_attention = bind(context, attention_plan.plan_attention)
        self.paged_attention = bind(context, attention.paged_attention)
        self.rope_attention = bind(context, attention.rope_attention)
        self.linear = bind(context, matmul.linear)
        self.linear_residual = bind(context, matmul.linear_residual)
        self.norm_stream = bind(context, norm.norm_stream)
        self.linear_norm_residual = bind(context, matmul.linear_norm_residual)
        self.norm_branches = bind(context, norm.norm_branches)
        self.norm_linear = bind(context, matmul.norm_linear)
        self.norm_swiglu = bind(context, matmul.norm_swiglu)
        self.norm_geglu = bind(context, matmul.norm_geglu)
        self.geglu_columns = bind(context, activation.geglu_columns)
        self.gate = bind(context, activation.gate)
        self.narrow = bind(context, activation.narrow)
        self.norm_gelu = bind(context, matmul.norm_gelu)
        self.short_convolution = bind(context, convolution.short_convolution)
        self.gated_delta_net = bind(context, delta_net.gated_delta_net)
        self.norm_moe_residual = bind(context, moe.norm_moe_residual)
        self.decode_layers_support = bind(context, decode_layers.decode_layers_support)
        self.decode_layers = bind(context, decode_layers.decode_layers)
        self.norm_head = bind(context, matmul.norm_head)
        self.reset_edits = bind(context, reset_edits)
        self.mask_logits = bind(context, mask_logits)
        self.sample = bind(context, sample)
        self.top_log_probabilities = bind(context, top_log_probabilities)
        self.begin_decode = bind(context, decode_step.begin_decode)
        self.resolve_tokens = bind(context, decode_step.resolve_tokens)
        self.select_step = bind(context, decode_step.select_step)
        self.select_rows = bind(context, decode_step.select_rows)


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
        self.norm_stream = kernels.reference.norm.norm_stream
        self.linear_norm_residual = kernels.reference.norm.linear_norm_residual
        self.norm_branches = kernels.reference.norm.norm_branches
        self.norm_linear = kernels.reference.norm.norm_linear
        self.norm_swiglu = kernels.reference.norm.norm_swiglu
        self.norm_geglu = kernels.reference.norm.norm_geglu
        self.geglu_columns = kernels.reference.activation.geglu_columns
        self.gate = kernels.reference.activation.gate
        self.narrow = kernels.reference.activation.narrow
        self.norm_gelu = kernels.reference.norm.norm_gelu
        self.short_convolution = kernels.reference.convolution.short_convolution
        self.gated_delta_net = kernels.reference.delta_net.gated_delta_net
        self.norm_moe_residual = kernels.reference.moe.norm_moe_residual
        self.decode_layers_support = kernels.reference.decode_layers.decode_layers_support
        self.decode_layers = kernels.reference.decode_layers.decode_layers
        self.norm_head = kernels.reference.norm.norm_head
        self.reset_edits = kernels.reference.sampling.reset_edits
        self.mask_logits = kernels.reference.sampling.mask_logits
        self.sample = kernels.reference.sampling.sample
        self.top_log_probabilities = kernels.reference.sampling.top_log_probabilities
        self.begin_decode = kernels.reference.decode_step.begin_decode
        self.resolve_tokens = kernels.reference.decode_step.resolve_tokens
        self.select_step = kernels.reference.decode_step.select_step
        self.select_rows = kernels.reference.decode_step.select_rows
