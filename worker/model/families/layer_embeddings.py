"""Embeddings that each layer has of its own: what Gemma's E-models keep beside their layers (Google, 2025-2026).

A token's embedding of a layer is a row of a table plus a projection of the token's ordinary embedding. At the end of
the layer the residual stream gates it, and what comes out is projected and added to the stream. Formulas as in Hugging
Face's ``modeling_gemma4``.
"""

from __future__ import annotations

import msgspec
import numpy as np

from kernels.batch import AnyArray, first
from kernels.devices.protocol import Allocate, AnyOps, AnyProjection, Device
from kernels.weights.parameters import RmsNorm
from worker.model.config import ModelConfig
from worker.model.weights import TensorSpec, Weights


class LayerEmbedding(msgspec.Struct, frozen=True, eq=False):
    """What a layer does with its embedding."""

    column: int  # where in a token's embeddings this layer's begins
    gate: AnyProjection
    projection: AnyProjection
    norm: RmsNorm[AnyArray]


class StepEmbeddings(msgspec.Struct, frozen=True, eq=False):
    """The embeddings of a step's tokens, and arrays for what layers make of them."""

    inputs: AnyArray  # [T, num_layers * layer_embedding] float32
    narrowed: AnyArray  # [T, hidden]
    gates: AnyArray  # [T, layer_embedding] float32
    gated: AnyArray  # [T, layer_embedding]

    def select(self, ops: AnyOps, rows: AnyArray) -> StepEmbeddings:
        """Those of some tokens, ``rows`` [N] of the arrays."""
        return StepEmbeddings(
            inputs=ops.select_rows(self.inputs, rows, self.inputs.shape[1]),
            **{name: first(getattr(self, name), rows.shape[0]) for name in ("narrowed", "gates", "gated")},
        )


class LayerEmbeddings:
    """The embeddings of all layers. ``half_scale`` keeps the residual stream within float16, a power of two."""

    def __init__(self, config: ModelConfig, weights: Weights, device: Device, half_scale: float) -> None:
        self._device = device
        self._half_scale = half_scale
        self._width, self._hidden = config.layer_embedding, config.hidden
        self._all_widths = config.num_layers * self._width
        self._table = weights.table("per_layer_token_embd.weight", config.vocab_size, self._all_widths)
        self._projection = weights.projection(
            TensorSpec("per_layer_model_proj", self._all_widths, bias=False), num_inputs=config.hidden
        )
        # (norm(projection / sqrt(hidden)) + row * sqrt(width)) / sqrt(2): all factors are in the norm and in `embed`.
        weight = weights.host_vector("per_layer_proj_norm.weight", self._width) * np.float32(0.5**0.5)
        epsilon = config.norm_epsilon * config.hidden * half_scale**2
        self._norm: RmsNorm[AnyArray] = RmsNorm(device.store.vector(weight), epsilon)

    def load(self, index: int, weights: Weights, epsilon: float) -> LayerEmbedding:
        """That of layer ``index``, whose ``weights`` are given."""
        return LayerEmbedding(
            column=index * self._width,
            gate=weights.projection(TensorSpec("inp_gate", self._width, bias=False), num_inputs=self._hidden),
            projection=weights.projection(TensorSpec("proj", self._hidden, bias=False), num_inputs=self._width),
            norm=weights.rms_norm("post_norm", self._hidden, epsilon * self._half_scale**2),
        )

    def embed(self, token_ids: AnyArray, x: AnyArray, empty: Allocate[AnyArray]) -> StepEmbeddings:
        """The embeddings of tokens whose ordinary, scaled ones are ``x`` [T, hidden] float32."""
        ops, num_tokens, dtype = self._device.ops, token_ids.size, self._device.activation_dtype
        step = StepEmbeddings(
            inputs=empty((num_tokens, self._all_widths), np.float32),
            narrowed=empty((num_tokens, self._hidden), dtype),
            gates=empty((num_tokens, self._width), np.float32),
            gated=empty((num_tokens, self._width), dtype),
        )
        ops.embed(token_ids, self._table, scale=(self._width / 2) ** 0.5, out=step.inputs)
        ops.narrow(x, self._half_scale, out=step.narrowed)
        ops.linear_norm_residual(step.narrowed, self._projection, self._norm, out=step.inputs)
        return step

    def add(self, layer: LayerEmbedding, step: StepEmbeddings, scale: float, *, out: AnyArray) -> None:
        """Add what ``layer`` makes of its embeddings to the residual stream ``out``, and multiply that by ``scale``."""
        ops, half_scale = self._device.ops, self._half_scale
        ops.narrow(out, half_scale, out=step.narrowed)
        ops.linear(step.narrowed, layer.gate, out=step.gates)
        ops.geglu_columns(step.gates, step.inputs, layer.column, 1 / half_scale, half_scale, out=step.gated)
        ops.linear_norm_residual(step.gated, layer.projection, layer.norm, scale=scale, out=out)
