"""kernels.weights.formats."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from kernels.weights.formats import BY_GGML_TYPE, FORMATS, WIDEST, Scaling

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
LOADED = """
import sys
import kernels.weights.formats
print([name for name in sys.modules if name.startswith(("kernels.ops", "kernels.devices", "cupy", "cuda", "numpy"))])
"""


def test_the_table_agrees_with_the_gguf_library() -> None:
    for format_ in FORMATS.values():
        kind = gguf.GGMLQuantizationType[format_.name]
        assert format_.ggml_type == kind.value
        assert (format_.block_elements, format_.block_bytes) == gguf.GGML_QUANT_SIZES[kind]
        assert BY_GGML_TYPE[kind.value] is format_


def test_who_asks_for_formats_loads_no_ops_no_devices_and_no_cupy() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_documentation_lists_the_formats() -> None:
    [listed] = re.findall(r"^Tensor types: (.*?), in any mixture", PAGE, re.MULTILINE | re.DOTALL)
    assert re.split(r",\s", listed) == list(FORMATS)


@pytest.mark.parametrize("name", [name for name, format_ in FORMATS.items() if not format_.grid])
def test_a_block_holds_its_codes_and_scales_without_overlap_or_gap(name: str) -> None:
    format_ = FORMATS[name]
    fields = [(format_.codes_at, format_.block_elements * format_.low_bits // 8)]
    if format_.high_bytes:
        fields.append((format_.high_at, format_.block_elements * (format_.code_bits - format_.low_bits) // 8))
    bytes_of_scales = {
        Scaling.SCALE: 2, Scaling.SCALE_MIN: 4, Scaling.SUPER_SCALES: 16, Scaling.SUPER_SCALES_32: 6,
        Scaling.SUPER_MINS: 12, Scaling.SUPER_MINS_16: 16, Scaling.EXPONENT: 1,
    }  # fmt: skip
    if format_.is_scaled:
        fields.append((format_.scales_at, 12 if format_.name == "Q3_K" else bytes_of_scales[format_.scaling]))
    if format_.scaling.super_bytes:
        fields.append((format_.super_at, format_.scaling.super_bytes // 16))
    end = 0
    for begin, num_bytes in sorted(fields):
        assert begin == end
        end += num_bytes
    assert end == format_.block_bytes


@pytest.mark.parametrize("name", [name for name, format_ in FORMATS.items() if format_.grid])
def test_a_block_of_points_holds_its_fields_without_overlap_or_gap(name: str) -> None:
    format_ = FORMATS[name]
    assert format_.grid is not None
    num_points = format_.block_elements // format_.grid.num_coordinates
    low_bytes = {"IQ2_XXS": 64, "IQ2_XS": 64}.get(name, num_points)  # signs lie among the indices
    fields = [(format_.super_at, 2), (format_.codes_at, low_bytes)]
    if name == "IQ3_XXS":
        fields.append((format_.signs_at, 32))  # and scales
    if format_.high_at:
        fields += [(format_.high_at, num_points * (format_.code_bits - 8) // 8), (format_.signs_at, 32)]
    if format_.scales_at:
        fields.append((format_.scales_at, 4 if name == "IQ3_S" else 8))
    end = 0
    for begin, num_bytes in sorted(fields):
        assert begin == end
        end += num_bytes
    assert end == format_.block_bytes


def test_the_formats_that_fit_the_widest_are_integers_with_one_scale_for_each_32() -> None:
    assert WIDEST.fits_widest
    for format_ in FORMATS.values():
        if format_.fits_widest:
            assert format_.scaling is WIDEST.scaling and format_.code_bits <= WIDEST.code_bits
