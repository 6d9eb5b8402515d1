"""The packed layout holds the file's numbers, all of them, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.weights.formats import FORMATS
from kernels.weights.packed import PackedMatrix
from kernels.weights.parameters import Weight
from kernels.weights.repack import unpack_rows
from kernels.weights.weight_store import PackedWeightStore
from tests.kernels.conftest import Download, Empty
from tests.kernels.ops.random_weights import random_weight, values_of
from tests.kernels.ops.test_matmul import load

pytestmark = pytest.mark.gpu

CONFORMANCE = Path(__file__).parents[3].parent / "shared" / "conformance"
KITS = [CONFORMANCE / "dequant" / "dequant.npz", CONFORMANCE / "2026" / "dequant" / "dequant.npz"]


def kit_blocks(name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path in KITS:
        with np.load(path) as kit:
            if f"{name}_raw" in kit:
                yield kit[f"{name}_raw"], kit[f"{name}_f32"]


def unpacked(device: CudaDevice, empty: Empty, download: Download, matrix: PackedMatrix) -> np.ndarray:
    out = empty((matrix.num_rows, matrix.width), np.float32)
    unpack_rows(device.context, matrix, None, out=out)
    return download(out)


@pytest.mark.sanitize("(17, 2816)-*")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(64, 256), (100, 512), (17, 2816)], ids=str)
def test_rows_come_back_as_they_were(
    device: CudaDevice, empty: Empty, download: Download, name: str, shape: tuple[int, int]
) -> None:
    weight = random_weight(name, shape, np.random.default_rng(0))
    (matrix,) = load(device, lambda store: store.projection([weight])).matrices
    np.testing.assert_array_equal(unpacked(device, empty, download, matrix), values_of(weight).astype(np.float32))


def test_formats_that_fit_one_lose_nothing_in_it(device: CudaDevice, empty: Empty, download: Download) -> None:
    rng = np.random.default_rng(5)
    weights = [random_weight(name, (40, 96), rng) for name in ("Q4_0", "Q5_0", "Q8_0")]
    (matrix,) = load(device, lambda store: store.projection(weights)).matrices
    expected = np.concatenate([values_of(weight) for weight in weights]).astype(np.float32)
    np.testing.assert_array_equal(unpacked(device, empty, download, matrix), expected)


@pytest.mark.sanitize
def test_columns_need_not_fill_a_chunk(device: CudaDevice, empty: Empty, download: Download) -> None:
    weight = random_weight("Q5_1", (33, 96), np.random.default_rng(1))
    (matrix,) = load(device, lambda store: store.projection([weight])).matrices
    np.testing.assert_array_equal(unpacked(device, empty, download, matrix), values_of(weight).astype(np.float32))


@pytest.mark.sanitize
def test_gate_and_up_alternate_in_eights(device: CudaDevice, empty: Empty, download: Download) -> None:
    rng = np.random.default_rng(2)
    gate, up = random_weight("Q6_K", (24, 256), rng), random_weight("Q6_K", (24, 256), rng)
    fused = Weight("both", gate.format, np.concatenate([gate.data, up.data]))
    expected = np.stack([values_of(gate).reshape(3, 8, 256), values_of(up).reshape(3, 8, 256)], axis=1).reshape(48, 256)
    for weights in ([gate, up], [fused]):
        (matrix,) = load(device, lambda store, weights=weights: store.gate_up(weights)).matrices
        np.testing.assert_array_equal(unpacked(device, empty, download, matrix), expected.astype(np.float32))


def test_tensors_with_nan_or_infinity_are_named(device: CudaDevice) -> None:
    rng = np.random.default_rng(3)
    for name in FORMATS:
        weight = random_weight(name, (40, 256), rng)
        row = weight.data.copy()
        format_ = weight.format
        at = (
            row.shape[1]
            - format_.block_bytes
            + (format_.super_at if format_.scaling.super_bytes else format_.scales_at)
        )
        bad = {"F32": np.float32(np.nan), "BF16": np.uint16(0x7FC0), "MXFP4": np.uint8(254)}.get(
            name, np.float16(np.inf)
        )
        row[39, at : at + bad.nbytes] = np.frombuffer(bad.tobytes(), np.uint8)
        store = PackedWeightStore(device.context, device.weights)
        store.projection([random_weight("Q8_0", (8, 64), rng)])
        store.projection([Weight("broken", weight.format, row)])
        assert store.load(lambda _done, _total: None) == ["broken"], name


@pytest.mark.skipif(not all(kit.exists() for kit in KITS), reason="needs the conformance kit in ../shared")
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "F32"])
def test_the_kits_blocks_come_back_bit_for_bit(device: CudaDevice, empty: Empty, download: Download, name: str) -> None:
    """Scales zero, negative, subnormal and largest; exponents 0, 1, 254, 255 (where ggml's reading is wanted)."""
    raw, expected = next(kit_blocks(name))
    format_ = FORMATS[name]
    per_row = max(1, 256 // format_.block_elements)
    if format_.block_elements == 1:
        per_row = 64
    num_rows = raw.shape[0] // per_row
    raw, expected = raw[: num_rows * per_row], expected[: num_rows * per_row]
    weight = Weight(name, format_, raw.reshape(num_rows, -1))
    store = PackedWeightStore(device.context, device.weights)
    (matrix,) = store.projection([weight]).matrices
    store.load(lambda _done, _total: None)
    found, expected = unpacked(device, empty, download, matrix), expected.reshape(num_rows, -1)
    with np.errstate(invalid="ignore"):
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    assert same.all(), (np.argwhere(~same)[:5], found[~same][:5], expected[~same][:5])
