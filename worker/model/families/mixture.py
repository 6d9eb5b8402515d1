"""Feed-forward networks of which a router chooses some for each token, and one beside them that all tokens go through.

The shared one is Qwen2-MoE's, whose output is gated. Formulas as in Hugging Face's ``modeling_qwen2_moe``.
"""

from __future__ import annotations

import msgspec

from kernels.devices.protocol import AnyExperts, AnyRouter
from kernels.weights.parameters import SharedWeights
from worker.model.config import ModelConfig
from worker.model.weights import TensorSpec, Weights


class Mixture(msgspec.Struct, frozen=True, eq=False):
    """The mixture of a layer, as `kernels.registry.Ops.norm_moe_residual` takes it."""

    router: AnyRouter
    experts: AnyExperts


def load_mixture(config: ModelConfig, weights: Weights) -> Mixture:
    """That of a layer whose ``weights`` are given: experts without biases, with a SwiGLU, as many as ``config`` says.

    Raises `ModelLoadFailed`.
    """
    shared = _load_shared(config, weights) if config.shared_intermediate else None
    return Mixture(
        router=weights.router(
            _spec("ffn_gate_inp", config.num_experts),
            num_inputs=config.hidden,
            num_used=config.num_experts_used,
            renormalises=config.renormalises_experts,
        ),
        experts=weights.experts(
            _spec("ffn_gate_exps", config.intermediate),
            _spec("ffn_up_exps", config.intermediate),
            _spec("ffn_down_exps", config.hidden),
            num_experts=config.num_experts,
            num_inputs=config.hidden,
            shared=shared,
        ),
    )


def _load_shared(config: ModelConfig, weights: Weights) -> SharedWeights:
    return weights.shared_expert(
        _spec("ffn_gate_shexp", config.shared_intermediate),
        _spec("ffn_up_shexp", config.shared_intermediate),
        _spec("ffn_down_shexp", config.hidden),
        "ffn_gate_inp_shexp.weight",
        num_inputs=config.hidden,
    )


def _spec(name: str, num_outputs: int) -> TensorSpec:
    return TensorSpec(name, num_outputs, bias=False)
