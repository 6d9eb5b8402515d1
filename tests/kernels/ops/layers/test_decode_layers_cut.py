"""kernels.ops.layers.decode_layers_cut: which layers and GPUs the kernel is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.ops.layers.decode_layers_cut import Layer, LayersCut, fits
from kernels.runtime.gpu_spec import A100, H100, GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.memory import Arena
from kernels.weights.formats import FORMATS
from kernels.weights.parameters import Attention, DenseLayer, RmsNorm, Weight
from kernels.weights.weight_store import PackedWeightStore

STORE = PackedWeightStore(Context(H100), Arena(0, None))


def weight(name: str, num_outputs: int, num_inputs: int, *, bias: bool = False) -> Weight:
    data = np.zeros((num_outputs, FORMATS[name].row_bytes(num_inputs)), np.uint8)
    return Weight(name, FORMATS[name], data, np.zeros(num_outputs, np.float32) if bias else None)


def layer(
    *, hidden: int = 896, heads: int = 14, kv_heads: int = 2, ffn: int = 4864, most: str = "Q5_0", down: str = "Q6_K"
) -> Layer:
    """A layer; by default one of Qwen2.5-0.5B."""
    norm = RmsNorm(STORE.vector(np.ones(hidden, np.float32)), 1e-6)
    qkv = [weight(most, 64 * count, hidden, bias=True) for count in (heads, kv_heads, kv_heads)]
    return DenseLayer(
        attention_norm=norm,
        qkv=STORE.projection(qkv),
        attention=Attention(heads, kv_heads, 64, scale=0.125),
        output=STORE.projection([weight(most, hidden, 64 * heads)]),
        ffn_norm=norm,
        gate_up=STORE.gate_up([weight(most, ffn, hidden) for _ in "gu"]),
        down=STORE.projection([weight(down, hidden, ffn)]),
    )


def test_a_small_model_fits_a_whole_hopper_and_no_other_gpu():
    layers = [layer(), layer(down="Q4_K"), layer(down="Q5_0")]
    assert fits(H100, layers)
    assert not fits(A100, layers)
    assert not fits(GpuSpec("sm_90a", 114, H100.shared_bytes), layers)  # an H100 PCIe


def test_no_block_has_more_than_it_can_do():
    cut = LayersCut.of([layer()])
    assert cut.gate_tiles * 3 <= 15
    assert cut.qkv_block == 56 <= cut.attention_block - 72
    assert cut.num_blocks == cut.attention_block + 2 <= H100.num_sms


@pytest.mark.parametrize(
    "other",
    [
        layer(hidden=960, heads=15, kv_heads=5),
        layer(hidden=2048, heads=32, kv_heads=8),
        layer(ffn=8192),
        layer(most="Q4_1"),
        layer(down="Q8_0"),  # more than the shared memory holds
        layer(down="Q3_K"),
        replace(layer(), attention=Attention(14, 2, 64, scale=0.125, window=128)),
        replace(layer(), attention=Attention(14, 2, 64, scale=0.125, softcap=30.0)),
        replace(layer(), attention=Attention(7, 1, 128, scale=0.125)),
        replace(layer(), output=STORE.projection([weight("Q5_0", 896, 896, bias=True)])),
    ],
)
def test_other_layers_are_computed_one_by_one(other: Layer):
    assert not fits(H100, [other])


def test_layers_of_two_shapes_are_computed_one_by_one():
    assert not fits(H100, [layer(), layer(ffn=4608)])
    assert not fits(H100, [layer()] * 33)
    assert not fits(H100, [])
