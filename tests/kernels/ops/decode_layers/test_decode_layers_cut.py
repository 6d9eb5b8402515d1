"""kernels.ops.decode_layers.decode_layers_cut: which layers and GPUs the kernel is for."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.ops.decode_layers.decode_layers_cut import Layer, LayersCut, Model, fits_head, obstacle
from kernels.runtime.gpu_spec import A100, H100, GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.memory import Arena
from kernels.weights.packed import PackedMatrix
from kernels.weights.parameters import (
    Attention,
    DenseLayer,
    DenseModel,
    OutputHead,
    RmsNorm,
    Rope,
    TokenEmbedding,
)
from kernels.weights.weight_store import PackedWeightStore
from tests.kernels.ops.decode_layers.layers_case import QWEN
from tests.kernels.ops.random_weights import zero_weight as weight

STORE = PackedWeightStore(Context(H100), Arena(0, None))


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


def model(layers: list[Layer], table: PackedMatrix | None = None) -> Model:
    norm = RmsNorm(STORE.vector(np.ones(896, np.float32)), 1e-6)
    head = OutputHead(norm, STORE.projection([weight("Q8_0", 500, 896)]))
    rope = Rope(STORE.vector(np.ones((1, 32), np.float32)), "neox")
    return DenseModel(TokenEmbedding(table or STORE.table(weight("Q5_0", 500, 896)), 1.0), rope, layers, head)


def test_a_small_model_fits_a_whole_hopper_and_no_other_gpu():
    layers = [layer(), layer(down="Q4_K"), layer(down="Q5_0")]
    assert obstacle(H100, model(layers)) is None
    assert obstacle(A100, model(layers)) == "it is for Hopper (sm_90a), and this GPU is sm_80"
    smaller = GpuSpec("sm_90a", 114, H100.shared_bytes)  # an H100 PCIe
    assert obstacle(smaller, model(layers)) == "its 130 blocks must run at once, and this GPU has 114 SMs"


def test_the_models_that_tests_on_a_gpu_run_fit():
    drawn = QWEN.model(STORE, np.random.default_rng(0), len(QWEN.formats))
    assert [obstacle(H100, drawn, num_tokens) for num_tokens in (1, 2, 4, 8)] == [None] * 4
    assert fits_head(drawn.head, drawn.layers[0])


def test_no_block_has_more_than_it_can_do():
    cut = LayersCut.of([layer()])
    assert cut.gate_tiles * 3 <= 15
    assert cut.qkv_block == 56 <= cut.attention_block - 72
    assert cut.num_blocks == cut.attention_block + 2 <= H100.num_sms


def test_of_many_tokens_some_blocks_have_tiles_of_two_products_and_more_attend():
    for num_tokens in (4, 8):
        cut = LayersCut.of([layer()], num_tokens)
        assert (cut.qkv_block, cut.attention_block, cut.num_blocks) == (50, 122, 130)


def test_a_head_follows_whose_rows_are_many_and_of_eight_bits():
    norm = RmsNorm(STORE.vector(np.ones(896, np.float32)), layer().ffn_norm.epsilon)

    def fits(format_: str, num_rows: int, epsilon: float = norm.epsilon) -> bool:
        head = STORE.projection([weight(format_, num_rows, 896)])
        return fits_head(OutputHead(replace(norm, epsilon=epsilon), head), layer())

    assert fits("Q8_0", 151_936)
    assert not fits("Q5_0", 151_936)
    assert not fits("Q8_0", 4096), "it has several partitions"
    assert not fits("Q8_0", 151_936, epsilon=1e-3)


def test_more_tokens_take_more_blocks_and_shared_memory():
    layers = [layer(), layer(down="Q4_K"), layer(down="Q5_0")]
    assert [obstacle(H100, model(layers), num_tokens) for num_tokens in (1, 2, 4, 8)] == [None] * 4
    assert obstacle(H100, model(layers), 3) == "it is for 1, 2, 4, 8 tokens, and these are 3"
    smaller = GpuSpec("sm_90a", 130, H100.shared_bytes)
    assert obstacle(smaller, model(layers), 1) is None
    assert obstacle(smaller, model(layers), 2) == "its 132 blocks must run at once, and this GPU has 130 SMs"
    other = GpuSpec("sm_90a", 132, H100.shared_bytes - (6 << 10))
    assert obstacle(other, model(layers), 2) is None
    assert "bytes of shared memory" in (obstacle(other, model(layers), 4) or "")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (layer(hidden=960, heads=15, kv_heads=5), "matrices of these widths"),
        (layer(hidden=2048, heads=32, kv_heads=8), "matrices of these widths"),
        (layer(ffn=8192), "matrices of these widths"),
        (layer(most="Q4_1"), "it does not unpack Q4_1 where"),
        (layer(down="Q8_0"), "bytes of shared memory"),
        (layer(down="Q3_K"), "it does not unpack Q3_K where"),
        (layer(most="Q4_K", hidden=1024, heads=16), "it does not unpack Q4_K where"),
        (replace(layer(), attention=Attention(14, 2, 64, scale=0.125, window=128)), "has no window"),
        (replace(layer(), attention=Attention(14, 2, 64, scale=0.125, softcap=30.0)), "has no window, soft cap"),
        (replace(layer(), attention=Attention(7, 1, 128, scale=0.125)), "heads of 64, and these have 128"),
        (replace(layer(), attention=Attention(18, 2, 64, scale=0.125)), "at most 8 query heads"),
        (layer(hidden=128, heads=2, kv_heads=1, ffn=256, down="Q5_0"), "matrices of these widths"),
        (replace(layer(), output=STORE.projection([weight("Q5_0", 896, 896, bias=True)])), "biases of Q, K and V only"),
    ],
)
def test_other_layers_are_computed_one_by_one_and_it_is_said_why(other: Layer, why: str):
    assert why in (obstacle(H100, model([other])) or "")


def test_embeddings_that_it_does_not_unpack_have_kernels_of_their_own():
    table = STORE.table(weight("F16", 500, 896))
    assert obstacle(H100, model([layer()], table)) == "it does not unpack embeddings of F16"


def test_layers_of_two_shapes_are_computed_one_by_one():
    assert obstacle(H100, model([layer(), layer(ffn=4608)])) == "it is for layers of one shape"


def test_layers_are_of_a_number_that_a_launch_takes():
    assert obstacle(H100, model([layer()] * 32)) is None
    assert obstacle(H100, model([layer()] * 33)) == "it is for at most 32 layers, and these are 33"
    assert obstacle(H100, model([]))
