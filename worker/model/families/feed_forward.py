"""A feed-forward network with a SwiGLU (Shazeer, "GLU variants improve transformer", 2020), without biases."""

from __future__ import annotations

import msgspec

from kernels.devices.protocol import AnyProjection
from worker.model.config import ModelConfig
from worker.model.weights import TensorSpec, Weights


class FeedForward(msgspec.Struct, frozen=True, eq=False):
    """The network of a layer, as `kernels.registry.Ops.norm_swiglu` and a projection after it take it."""

    gate_up: AnyProjection
    down: AnyProjection


def load_feed_forward(config: ModelConfig, weights: Weights) -> FeedForward:
    """That of a layer whose ``weights`` are given. Raises `ModelLoadFailed`."""
    return FeedForward(
        gate_up=weights.gate_up(
            TensorSpec("ffn_gate", config.intermediate, bias=False),
            TensorSpec("ffn_up", config.intermediate, bias=False),
            num_inputs=config.hidden,
        ),
        down=weights.projection(TensorSpec("ffn_down", config.hidden, bias=False), num_inputs=config.intermediate),
    )
