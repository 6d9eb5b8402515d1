"""kernels: the public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kernels

LOADED = "import kernels, sys; print([name for name in sys.modules if name.startswith(('kernels.', 'numpy', 'cupy'))])"


def test_public_names_are_loaded_when_they_are_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert all(getattr(kernels, name).__name__ == name for name in kernels.__all__ if name != "FORMATS")
    assert kernels.FORMATS["Q4_K"].block_elements == 256


def test_a_name_that_is_not_there_is_said_as_python_says_it() -> None:
    with pytest.raises(AttributeError, match="module 'kernels' has no attribute 'Chip'"):
        kernels.Chip  # noqa: B018 - it is asked for
