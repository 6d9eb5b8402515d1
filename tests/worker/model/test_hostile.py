"""Model files that lie: each is refused with a clear error, in little time and memory."""

from __future__ import annotations

import json
import math
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.worker.model import fuzz
from tests.worker.model.stepping import logits_alone
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model

KIT = Path(__file__).parents[3].parent / "shared" / "conformance" / "hostile"
CASES: list[dict[str, Any]] = json.loads((KIT / "hostile.json").read_text())["files"] if KIT.exists() else []

needs_kit = pytest.mark.skipif(not CASES, reason="needs the conformance kit in ../shared")


def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


@needs_kit
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_a_hostile_file_is_refused_quickly_and_by_name(case: dict[str, Any]) -> None:
    tracemalloc.start()
    started = time.process_time()
    try:
        load(KIT / case["file"])
        error = None
    except ModelLoadFailed as caught:
        error = caught
    seconds, peak_bytes = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < fuzz.MAX_SECONDS and peak_bytes < fuzz.MAX_MEMORY_BYTES
    if error is None:
        assert case["expected"] == "error_or_load"
    else:
        assert error.code == "MODEL_LOAD_FAILED" and case["file"] in error.message and "\n" not in error.message


@needs_kit
def test_the_file_that_the_hostile_ones_derive_from_runs() -> None:
    assert np.isfinite(logits_alone(load(KIT / "valid.gguf"), [1, 2, 3])).all()


def test_some_seconds_of_fuzzing_find_nothing_but_clear_errors(tmp_path: Path) -> None:
    outcomes = fuzz.run(tmp_path, seed=0, until=math.inf, max_files=400)
    assert outcomes["refused"] > outcomes["ran"] > 0


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzz.Seed]:
    folder = tmp_path_factory.mktemp("good")
    return {family: fuzz.Seed(fuzz.write_tiny(family, folder / f"{family}.gguf")) for family in fuzz.FAMILIES}


PLACES = st.floats(0, 1, exclude_max=True)
PATCHES = st.one_of(
    st.binary(min_size=1, max_size=8), st.sampled_from(fuzz.NUMBERS).map(lambda number: number.to_bytes(8, "little"))
)


@settings(max_examples=300)
@given(
    family=st.sampled_from(sorted(fuzz.FAMILIES)), patches=st.lists(st.tuples(PLACES, PATCHES), min_size=1, max_size=3)
)
def test_no_patch_of_a_header_gives_anything_but_a_clear_error(
    good_files: dict[str, fuzz.Seed], family: str, patches: list[tuple[float, bytes]]
) -> None:
    good = good_files[family]
    data = bytearray(good.data)
    for place, patch in patches:
        at = int(place * good.header_bytes)
        data[at : at + len(patch)] = patch
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        fuzz.attempt(Path(file.name))
