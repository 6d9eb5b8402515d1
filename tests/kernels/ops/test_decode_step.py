"""kernels.ops.decode_step against its NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from kernels.batch import SAMPLING_ROW, Array, PreviousDraw, SamplingParams, StateRows, Step
from kernels.decode_rows import DecodeRows, RowUpdates, allocate_rows, write_updates
from kernels.ops import decode_step
from kernels.reference import decode_step as reference
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from tests.kernels.conftest import Download, Upload

pytestmark = pytest.mark.gpu

SAMPLED = "rows", "output_positions"  # of `SamplingParams`; nothing is edited here
NUM_ROWS, MAX_BLOCKS, BLOCK_TOKENS = 300, 37, 16


class _HostMemory:
    """Arrays with the state of a batch in the middle of its life: some rows empty, some draws failed."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        if dtype == SAMPLING_ROW:
            return self._generator.integers(0, 100, shape[0] * SAMPLING_ROW.itemsize, np.uint8).view(dtype)
        return self._generator.integers(0, 100, shape).astype(dtype)


def _arrays(rows: DecodeRows[Array]) -> dict[str, Array]:
    nested = "sampling", "states"
    arrays = {name: getattr(rows, name) for name in rows.__struct_fields__ if name not in nested}
    if rows.states is not None:
        arrays |= {f"state_{name}": getattr(rows.states, name) for name in rows.states.__struct_fields__}
    return arrays | {name: getattr(rows.sampling, name) for name in SAMPLED}


def _upload(rows: DecodeRows[NDArray[Any]], upload: Upload) -> DecodeRows[DeviceArray]:
    arrays = {name: upload(array) for name, array in _arrays(rows).items()}
    sampling = SamplingParams(**{name: arrays.pop(name) for name in SAMPLED})
    states = StateRows(arrays.pop("state_slots"), arrays.pop("state_sources")) if rows.states else None
    return DecodeRows(sampling=sampling, states=states, **arrays)


def _random_rows(generator: np.random.Generator, *, has_states: bool) -> DecodeRows[NDArray[Any]]:
    rows = allocate_rows(_HostMemory(generator), NUM_ROWS, MAX_BLOCKS, has_states=has_states)
    rows.positions[:] = generator.integers(-1, MAX_BLOCKS * BLOCK_TOKENS - 8, NUM_ROWS)
    rows.positions[generator.random(NUM_ROWS) < 0.2] = -1
    rows.context_lengths[:] = rows.sequence_lengths[:] = rows.positions + 1
    rows.drawn[:] = generator.integers(-1, 1000, NUM_ROWS)
    return rows


@pytest.mark.sanitize("40-1")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_updates", [0, 1, 40, NUM_ROWS])
def test_rows_go_on_as_the_reference_says(
    context: Context, upload: Upload, download: Download, seed: int, num_updates: int
):
    generator = np.random.default_rng(seed)
    expected = _random_rows(generator, has_states=seed % 2 > 0)
    updates = RowUpdates()
    for row in generator.permutation(NUM_ROWS)[:num_updates].tolist():
        token = int(generator.integers(-NUM_ROWS, 1000))
        updates.put(
            row,
            token if token >= 0 else PreviousDraw(-1 - token),
            position=int(generator.integers(-1, MAX_BLOCKS * BLOCK_TOKENS - 8)),
            output_position=int(generator.integers(0, 2**40)),
            sampling_row=generator.integers(0, 100, SAMPLING_ROW.itemsize, np.uint8).tobytes(),  # no NaN among them
            state=(row, int(generator.integers(-1, 100))),
        )
    updates.block_entries = generator.permutation(NUM_ROWS * MAX_BLOCKS)[: int(generator.integers(0, 3000))].tolist()
    updates.block_ids = generator.integers(0, 5000, len(updates.block_entries)).tolist()
    write_updates(updates, expected.updates)
    actual = _upload(expected, upload)
    num_rows = int(generator.integers(1, NUM_ROWS + 1))
    for _ in range(3):  # the second time there are no updates left
        decode_step.begin_decode(context, actual, num_rows, BLOCK_TOKENS)
        reference.begin_decode(expected, num_rows, BLOCK_TOKENS)
        arrays = _arrays(actual)
        for name, array in _arrays(expected).items():
            np.testing.assert_array_equal(download(arrays[name]), array, err_msg=name)


@pytest.mark.sanitize("1023")
@pytest.mark.parametrize("num_tokens", [1, 1023, 5000])
def test_ids_still_on_the_device_are_resolved(context: Context, upload: Upload, download: Download, num_tokens: int):
    generator = np.random.default_rng(num_tokens)
    drawn = generator.integers(-1, 1000, 64).astype(np.int32)
    ids = generator.integers(-64, 1000, num_tokens).astype(np.int32)
    actual = upload(ids)
    decode_step.resolve_tokens(context, actual, upload(drawn))
    reference.resolve_tokens(ids, drawn)
    np.testing.assert_array_equal(download(actual), ids)


@pytest.mark.sanitize("37-300")
@pytest.mark.parametrize(("num_rows", "max_blocks"), [(1, 1), (5, 64), (37, 300)])
def test_tokens_with_logits_become_sequences_of_their_own(
    context: Context, upload: Upload, download: Download, num_rows: int, max_blocks: int
):
    generator = np.random.default_rng(num_rows)
    num_tokens, num_sequences = 400, 9
    step = Step(
        token_ids=generator.integers(0, 1000, num_tokens, np.int32),
        positions=generator.integers(-1, 5000, num_tokens, np.int32),
        slots=generator.integers(0, 5000, num_tokens, np.int32),
        sequence_rows=generator.integers(0, num_sequences, num_tokens, np.int32),
        query_starts=generator.integers(0, num_tokens, num_sequences + 1, np.int32),
        context_lengths=generator.integers(0, 5000, num_sequences, np.int32),
        sequence_lengths=generator.integers(0, 5000, num_sequences, np.int32),
        block_tables=generator.integers(0, 5000, (num_sequences, max_blocks), np.int32),
        logit_rows=generator.integers(0, num_tokens, num_rows, np.int32),
    )
    sent = Step(**{name: upload(array) for name, array in step.arrays().items()})
    arrays = decode_step.select_step(context, sent).arrays()
    for name, expected in reference.select_step(step).arrays().items():
        np.testing.assert_array_equal(download(arrays[name]), expected, err_msg=name)


@pytest.mark.sanitize("4112-3000-float16")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("width", "num_columns"), [(64, 64), (4112, 3000)])
def test_rows_are_selected(
    context: Context, upload: Upload, download: Download, dtype: DTypeLike, width: int, num_columns: int
):
    generator = np.random.default_rng(width)
    x = generator.standard_normal((50, width)).astype(dtype)
    rows = generator.integers(0, 50, 70, np.int32)
    actual = decode_step.select_rows(context, upload(x), upload(rows), num_columns)
    np.testing.assert_array_equal(download(actual), reference.select_rows(x, rows, num_columns))
