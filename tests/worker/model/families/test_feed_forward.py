"""worker.model.families.feed_forward against the formula in float64."""

from __future__ import annotations

import numpy as np

from kernels.devices.open import open_device
from kernels.weights.parameters import RmsNorm
from tests.models.files import SMALL
from tests.worker.model.families.test_layer_embeddings import rms_norm, values
from worker.model.families.feed_forward import load_feed_forward
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config
from worker.model.weights import Weights


def test_it_is_gate_and_up_projection_a_swiglu_and_a_projection_down() -> None:
    gguf, device = open_gguf(SMALL["qwen35-q4_k_m"]), open_device("cpu")
    config = read_model_config(gguf)
    network = load_feed_forward(config, Weights(gguf, device).layer(1))
    x = np.random.default_rng(0).normal(size=(3, config.hidden)).astype(np.float32)
    activated, out = np.empty((3, config.intermediate), np.float32), np.zeros_like(x)
    device.ops.norm_swiglu(x, RmsNorm(np.ones(config.hidden, np.float32), 1e-6), network.gate_up, out=activated)
    device.ops.linear_residual(activated, network.down, out=out)
    normed = rms_norm(x.astype(np.float64), np.ones(config.hidden), 1e-6)
    gate, up, down = (values(gguf, f"blk.1.ffn_{part}.weight") for part in ("gate", "up", "down"))
    gates = normed @ gate.T
    np.testing.assert_allclose(out, (gates / (1 + np.exp(-gates)) * (normed @ up.T)) @ down.T, atol=1e-4)
