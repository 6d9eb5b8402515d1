"""kernels.weights.formats."""

from __future__ import annotations

import subprocess
import sys

import gguf

from kernels.weights.formats import BY_GGML_TYPE, FORMATS

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
