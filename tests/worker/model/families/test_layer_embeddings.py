"""worker.model.families.layer_embeddings against the formula in float64."""

from __future__ import annotations

import numpy as np

from kernels.devices.open import open_device
from kernels.weights.dequant import dequantise
from tests.models.files import SMALL
from worker.model.families.gemma_layers import HALF_SCALE
from worker.model.families.layer_embeddings import LayerEmbeddings
from worker.model.gguf import GGUFFile, open_gguf
from worker.model.registry import read_model_config
from worker.model.weights import Weights

NAME = "gemma4-e-q8_0"


def values(gguf: GGUFFile, name: str) -> np.ndarray:
    tensor = gguf.tensors[name]
    out = np.empty(tensor.shape, np.float32)
    dequantise(tensor.format, np.ascontiguousarray(tensor.data), out=out)
    return out.astype(np.float64)


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight


def test_a_layer_adds_what_the_stream_lets_through_of_its_embedding() -> None:
    gguf, device = open_gguf(SMALL[NAME]), open_device("cpu")
    config, weights = read_model_config(gguf), Weights(gguf, device)
    embeddings = LayerEmbeddings(config, weights, device, HALF_SCALE)
    layer = embeddings.load(2, weights.layer(2), config.norm_epsilon)
    rng = np.random.default_rng(0)
    ids = np.array([3, 70, 300], np.int32)
    x, stream = (rng.normal(size=(3, config.hidden)).astype(np.float32) for _ in range(2))
    step = embeddings.embed(ids, x, device.begin_step())
    width, epsilon = config.layer_embedding, config.norm_epsilon
    rows = values(gguf, "per_layer_token_embd.weight")[ids].reshape(3, -1, width) * width**0.5
    projected = (x @ values(gguf, "per_layer_model_proj.weight").T / config.hidden**0.5).reshape(3, -1, width)
    inputs = (rms_norm(projected, values(gguf, "per_layer_proj_norm.weight"), epsilon) + rows) / 2**0.5
    np.testing.assert_allclose(step.inputs, inputs.reshape(3, -1), atol=1e-5)

    out = stream.copy()
    embeddings.add(layer, step, 0.7, out=out)
    y = stream @ values(gguf, "blk.2.inp_gate.weight").T
    gated = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))) * inputs[:, 2]
    branch = rms_norm(gated @ values(gguf, "blk.2.proj.weight").T, values(gguf, "blk.2.post_norm.weight"), epsilon)
    np.testing.assert_allclose(out, 0.7 * (stream + branch), atol=1e-5)
