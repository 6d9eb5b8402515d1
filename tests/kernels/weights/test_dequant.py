"""kernels.weights.dequant against gguf.quants and the conformance kit: bit-exact, edge values included."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.weights.dequant import dequantise, is_finite
from kernels.weights.formats import FORMATS, Format

CONFORMANCE = Path(__file__).parents[3].parent / "shared" / "conformance"
KITS = [CONFORMANCE / "dequant" / "dequant.npz", CONFORMANCE / "2026" / "dequant" / "dequant.npz"]


def expand(format_: Format, blocks: np.ndarray) -> np.ndarray:
    num_elements = blocks.shape[-1] // format_.block_bytes * format_.block_elements
    out = np.empty((*blocks.shape[:-1], num_elements), np.float32)
    dequantise(format_, blocks, out=out)
    return out


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, but for the sign of zero and the payload of NaN."""
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.skipif(not all(kit.exists() for kit in KITS), reason="needs the conformance kit in ../shared")
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "F32"])
def test_every_format_expands_the_conformance_blocks_exactly(name: str) -> None:
    found = 0
    for path in KITS:
        with np.load(path) as kit:
            if f"{name}_raw" in kit:
                assert_same_bits(expand(FORMATS[name], kit[f"{name}_raw"]), kit[f"{name}_f32"])
                found += 1
    assert found == 1


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), extreme=st.booleans())
def test_every_format_expands_any_bytes_as_the_gguf_library_does(name: str, seed: int, extreme: bool) -> None:
    format_ = FORMATS[name]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (7, 3 * format_.block_bytes), dtype=np.uint8)
    if extreme:
        blocks[rng.random(blocks.shape) < 0.5] = rng.choice([0, 1, 127, 128, 254, 255])
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
    assert_same_bits(expand(format_, blocks), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_no_blocks_expand_to_no_numbers(name: str) -> None:
    format_ = FORMATS[name]
    assert expand(format_, np.empty((0, format_.block_bytes), np.uint8)).shape == (0, format_.block_elements)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_blocks_called_finite_expand_to_finite_numbers(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (int(rng.integers(1, 4)), FORMATS[name].block_bytes), dtype=np.uint8)
    finite = is_finite(FORMATS[name], blocks)
    all_finite = bool(np.isfinite(expand(FORMATS[name], blocks)).all())
    assert all_finite if finite else name == "MXFP4" or not all_finite
