"""kernels.ops.decode_step beside its NumPy twin."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from kernels.batch import DecodeRows, Draws, Patch, allocate_rows, write_changes
from kernels.ops import decode_step
from kernels.reference import decode_step as reference

pytestmark = pytest.mark.gpu

NUM_ROWS, MAX_BLOCKS, BLOCK_TOKENS = 300, 37, 16


class _HostMemory:
    """Arrays with the state of a batch in the middle of its life: some rows empty, some draws failed."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._generator.integers(0, 100, shape).astype(dtype)


def _arrays(rows: DecodeRows) -> dict[str, Any]:
    arrays = {field.name: getattr(rows, field.name) for field in fields(rows) if field.name != "draws"}
    return arrays | {field.name: getattr(rows.draws, field.name) for field in fields(rows.draws)}


def _upload(rows: DecodeRows, upload: Any) -> DecodeRows:
    arrays = {name: upload(array) for name, array in _arrays(rows).items()}
    draws = Draws(**{field.name: arrays.pop(field.name) for field in fields(Draws)})
    return DecodeRows(draws=draws, **arrays)


def _random_rows(generator: np.random.Generator) -> DecodeRows:
    rows = allocate_rows(_HostMemory(generator), NUM_ROWS, MAX_BLOCKS)
    rows.positions[:] = generator.integers(-1, MAX_BLOCKS * BLOCK_TOKENS - 8, NUM_ROWS)
    rows.positions[generator.random(NUM_ROWS) < 0.2] = -1
    rows.context_lengths[:] = rows.sequence_lengths[:] = rows.positions + 1
    rows.drawn[:] = generator.integers(-1, 1000, NUM_ROWS)
    return rows


@pytest.mark.sanitize("40-0")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_patches", [0, 1, 40, NUM_ROWS])
def test_rows_go_on_as_the_reference_says(context: Any, upload: Any, download: Any, seed: int, num_patches: int):
    generator = np.random.default_rng(seed)
    expected = _random_rows(generator)
    patches = [
        Patch(
            row=int(row),
            token_id=int(generator.integers(-NUM_ROWS, 1000)),
            position=int(generator.integers(-1, MAX_BLOCKS * BLOCK_TOKENS - 8)),
            temperature=float(generator.random()),
            top_k=int(generator.integers(0, 50)),
            top_p=float(generator.random()),
            min_p=float(generator.random()),
            key=int(generator.integers(0, 2**64, dtype=np.uint64)),
            output_position=int(generator.integers(0, 2**40)),
        ).pack()
        for row in generator.permutation(NUM_ROWS)[:num_patches]
    ]
    entries = generator.permutation(NUM_ROWS * MAX_BLOCKS)[: int(generator.integers(0, 3000))].tolist()
    write_changes(patches, entries, generator.integers(0, 5000, len(entries)).tolist(), expected.changes)
    actual = _upload(expected, upload)
    num_rows = int(generator.integers(1, NUM_ROWS + 1))
    for _ in range(3):  # the second time there are no changes left
        decode_step.begin_decode(context, actual, num_rows, BLOCK_TOKENS)
        reference.begin_decode(expected, num_rows, BLOCK_TOKENS)
        arrays = _arrays(actual)
        for name, array in _arrays(expected).items():
            np.testing.assert_array_equal(download(arrays[name]), array, err_msg=name)


@pytest.mark.sanitize("1023")
@pytest.mark.parametrize("num_tokens", [1, 1023, 5000])
def test_ids_still_on_the_device_are_resolved(context: Any, upload: Any, download: Any, num_tokens: int):
    generator = np.random.default_rng(num_tokens)
    drawn = generator.integers(-1, 1000, 64).astype(np.int32)
    ids = generator.integers(-64, 1000, num_tokens).astype(np.int32)
    actual = upload(ids)
    decode_step.resolve_tokens(context, actual, upload(drawn))
    reference.resolve_tokens(ids, drawn)
    np.testing.assert_array_equal(download(actual), ids)
