"""kernels.ops.decode_layers.streamed_layers_cut: which models and GPUs the kernel is for, and who does what."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.ops.decode_layers.decode_layers_cut import Layer, Model
from kernels.ops.decode_layers.streamed_layers import CONTEXT
from kernels.ops.decode_layers.streamed_layers_cut import StreamedLayersCut, obstacle
from kernels.runtime.gpu_spec import A100, H100, GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.memory import Arena
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
from tests.kernels.ops.decode_layers.layers_case import PHI_3
from tests.kernels.ops.random_weights import zero_weight as weight

STORE = PackedWeightStore(Context(H100), Arena(0, None))
HEADS, HEAD_DIM = 32, 96


def norm(width: int = HEADS * HEAD_DIM, epsilon: float = 1e-5) -> RmsNorm:
    return RmsNorm(STORE.vector(np.ones(width, np.float32)), epsilon)


def layer(*, hidden: int = 3072, heads: int = HEADS, ffn: int = 8192, qkv: str = "Q5_K", down: str = "Q6_K") -> Layer:
    """A layer; by default one of Phi-3-mini."""
    return DenseLayer(
        attention_norm=norm(hidden),
        qkv=STORE.projection([weight(qkv, 3 * HEAD_DIM * heads, hidden)]),
        attention=Attention(heads, heads, HEAD_DIM, scale=0.1, window=2047),
        output=STORE.projection([weight("Q4_K", hidden, HEAD_DIM * heads)]),
        ffn_norm=norm(hidden),
        gate_up=STORE.gate_up([weight("Q4_K", ffn, hidden) for _ in "gu"]),
        down=STORE.projection([weight(down, hidden, ffn)]),
    )


def model(layers: list[Layer], *, ends: str = "Q6_K", vocab: int = 32_064, epsilon: float = 1e-5) -> Model:
    head = OutputHead(norm(epsilon=epsilon), STORE.projection([weight(ends, vocab, 3072)]))
    rope = Rope(STORE.vector(np.ones((1, HEAD_DIM // 2), np.float32)), "neox")
    return DenseModel(TokenEmbedding(STORE.table(weight(ends, vocab, 3072)), 1.0), rope, layers, head)


def tiles_of(product: dict[str, int], block: int) -> range:
    """As `BlockTiles` of streamed_layers.cuh."""
    if block < product["big_blocks"]:
        return range(block * product["big_tiles"], (block + 1) * product["big_tiles"])
    first, others = product["big_blocks"] * product["big_tiles"], product["end_block"] - product["big_blocks"]
    number, rest = block - product["big_blocks"], product["num_tiles"] - first
    if number >= others:
        return range(0)
    return range(first + number * rest // others, first + (number + 1) * rest // others)


@pytest.mark.parametrize("num_sms", [114, 132])
def test_every_tile_is_one_blocks_and_none_has_more_than_its_warps_and_sums_can_take(num_sms: int) -> None:
    cut = StreamedLayersCut.of(GpuSpec("sm_90a", num_sms, H100.shared_bytes), model([layer()]))
    assert (cut.num_blocks, cut.attention_block) == (num_sms, num_sms - HEADS)
    for number, product in enumerate(cut.products):
        tiles = Counter(tile for block in range(num_sms) for tile in tiles_of(product, block))
        assert tiles == Counter(range(product["num_tiles"]))
        most = max(len(tiles_of(product, block)) for block in range(num_sms))
        assert most == product["big_tiles"]
        if number in (0, 1):  # Q, K and V, and output: blocks that attend have less to do, or nothing
            assert max(len(tiles_of(product, block)) for block in range(cut.attention_block, num_sms)) < most


def test_the_models_that_tests_on_a_gpu_run_fit() -> None:
    drawn = PHI_3.model(STORE, np.random.default_rng(0), len(PHI_3.formats))
    assert obstacle(H100, drawn, CONTEXT) is None


def test_a_wide_model_is_for_a_hopper_with_as_many_blocks_as_it_takes() -> None:
    whole = model([layer(), layer(down="Q4_K")])
    assert obstacle(H100, whole, 768) is None
    assert obstacle(A100, whole, 768) == "it is for Hopper (sm_90a), and this GPU is sm_80"
    assert obstacle(GpuSpec("sm_90a", 114, H100.shared_bytes), whole, 768) == (
        "114 blocks cannot share out matrices of these sizes"
    )
    assert "SMs, and this GPU has 30" in (obstacle(GpuSpec("sm_90a", 30, H100.shared_bytes), whole, 768) or "")
    assert "bytes of shared memory" in (obstacle(GpuSpec("sm_90a", 132, 200 << 10), whole, 768) or "")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (model([]), "at most 32 layers"),
        (model([layer()] * 33), "at most 32 layers"),
        (model([layer(), layer(ffn=4096)]), "layers of one shape"),
        (model([layer(ffn=7680)]), "cannot share out matrices"),
        (model([layer(ffn=16384)]), "at most 8192 inputs"),
        (model([layer(hidden=2048)]), "a residual stream of 3072"),
        (model([layer(qkv="Q8_0")]), "it does not unpack Q8_0"),
        (model([replace(layer(), attention=Attention(32, 32, 128, scale=0.1))]), "heads of 96, and these have 128"),
        (model([replace(layer(), attention=Attention(32, 2, 96, scale=0.1))]), "at most 8 query heads"),
        (model([replace(layer(), attention=Attention(32, 32, 96, scale=0.1, window=700))]), "no window of 700"),
        (model([replace(layer(), attention=Attention(32, 32, 96, scale=0.1, softcap=30.0))]), "no soft cap"),
        (
            model([replace(layer(), output=STORE.projection([weight("Q4_K", 3072, 3072, bias=True)]))]),
            "SwiGLU, without biases",
        ),
        (
            model([replace(layer(), qkv=STORE.projection([weight(name, 4608, 3072) for name in ("Q4_K", "Q6_K")]))]),
            "one tensor type each",
        ),
        (model([layer()], ends="Q8_0"), "embeddings or heads of Q8_0"),
        (model([layer()], vocab=4096), "an output head"),
        (model([layer()], vocab=65_536), "cannot share out matrices"),
        (model([layer()], epsilon=1e-3), "norms with one epsilon"),
    ],
)
def test_other_models_layers_are_computed_one_by_one_and_it_is_said_why(other: Model, why: str) -> None:
    assert why in (obstacle(H100, other, 768) or "")
