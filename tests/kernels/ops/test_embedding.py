"""kernels.ops.embedding against its NumPy reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.embedding import embed, embed_positions
from kernels.weights.dequant import dequantise
from kernels.weights.formats import FORMATS
from kernels.weights.packed import PackedMatrix
from kernels.weights.parameters import Weight
from kernels.weights.weight_store import PackedWeightStore
from tests.kernels.conftest import Download, Empty, Upload

pytestmark = pytest.mark.gpu


def make_blocks(rng: np.random.Generator, name: str, num_rows: int, width: int) -> np.ndarray:
    """Any bytes, so also scales that are subnormal, huge, infinite or NaN; many zeros and extremes among them."""
    blocks = rng.integers(0, 256, (num_rows, FORMATS[name].row_bytes(width)), dtype=np.uint8)
    extreme = rng.random(blocks.shape) < 0.2
    blocks[extreme] = rng.choice([0, 1, 2, 127, 128, 254, 255], int(extreme.sum()))
    return blocks


def make_table(device: CudaDevice, name: str, blocks: np.ndarray) -> PackedMatrix:
    """``blocks`` as a table on the device, finite or not."""
    store = PackedWeightStore(device.context, device.weights)
    table = store.table(Weight("table", FORMATS[name], blocks))
    store.load(lambda _done, _total: None)
    return table


def expand(name: str, blocks: np.ndarray, width: int) -> np.ndarray:
    out = np.empty((blocks.shape[0], width), np.float32)
    dequantise(FORMATS[name], blocks, out=out)
    return out


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, but for the payload of NaN."""
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    wrong = np.argwhere((actual.view(np.uint32) != expected.view(np.uint32)) & ~np.isnan(expected))
    shown = [f"{tuple(at)}: {actual[tuple(at)]!r}, not {expected[tuple(at)]!r}" for at in wrong[:6]]
    assert not len(wrong), f"{len(wrong)} of {actual.size}: {shown}"


@pytest.mark.sanitize("7-*")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("num_ids", [0, 1, 7, 1000])
def test_rows_are_expanded_exactly(
    device: CudaDevice, upload: Upload, download: Download, empty: Empty, name: str, num_ids: int
) -> None:
    rng = np.random.default_rng()
    narrowest = max(FORMATS[name].block_elements, 32)
    for width in (narrowest, 9 * narrowest, 1280, 2816):
        blocks = make_blocks(rng, name, 37, width)
        table = make_table(device, name, blocks)
        ids = rng.integers(0, 37, num_ids).astype(np.int32)
        out = empty((num_ids, width), np.float32)
        embed(device.context, upload(ids), table, out=out)
        assert_same_bits(download(out), expand(name, blocks[ids], width))
        embed(device.context, upload(ids), table, scale=12.5, out=out)
        with np.errstate(all="ignore"):
            assert_same_bits(download(out), expand(name, blocks[ids], width) * np.float32(12.5))


def test_every_exponent_of_mxfp4_and_every_half(
    device: CudaDevice, upload: Upload, download: Download, empty: Empty
) -> None:
    rng = np.random.default_rng()
    blocks = rng.integers(0, 256, (256, 17), dtype=np.uint8)
    blocks[:, 0] = np.arange(256)
    halves = np.arange(65536).astype(np.uint16).view(np.uint8).reshape(256, 512)
    for name, data, width in (("MXFP4", blocks, 32), ("F16", halves, 256), ("BF16", halves, 256)):
        out = empty((256, width), np.float32)
        embed(device.context, upload(np.arange(256, dtype=np.int32)), make_table(device, name, data), out=out)
        assert_same_bits(download(out), expand(name, data, width))


@pytest.mark.sanitize("Q8_0")
@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "Q4_K"])
def test_positions_are_added_and_padding_stays_within_the_table(
    device: CudaDevice, upload: Upload, download: Download, empty: Empty, name: str
) -> None:
    rng = np.random.default_rng()
    width = 768
    blocks = make_blocks(rng, name, 50, width)
    places = rng.normal(size=(20, width)).astype(np.float32)
    ids, positions = rng.integers(0, 50, 33).astype(np.int32), rng.integers(0, 20, 33).astype(np.int32)
    ids[-3:], positions[-3:] = [0, -1, 50], [-1, 20, -(2**31)]
    table, position_table = make_table(device, name, blocks), make_table(device, "F32", places.view(np.uint8))
    out = empty((33, width), np.float32)
    embed_positions(device.context, upload(ids), table, upload(positions), position_table, out=out)
    with np.errstate(all="ignore"):
        expected = expand(name, blocks[ids.clip(0, 49)], width) + places[positions.clip(0, 19)]
    assert_same_bits(download(out), expected)
