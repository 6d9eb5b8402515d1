"""The arrays of a step, and how tokens that only the device knows are encoded."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from kernels.batch import (
    ANY_ID,
    SAMPLING_ROW,
    PreviousDraw,
    SamplingParams,
    SamplingRow,
    StateRows,
    Step,
    decode_draw,
    decode_only_id,
    encode_draw,
    encode_only_id,
    encode_token,
    pack,
    packed_bytes,
    view,
)


def test_a_token_is_its_id_or_a_draw_of_the_previous_step() -> None:
    draws = np.array([0, 7, 4095], np.int32)
    assert [encode_token(token) for token in (0, 5)] == [0, 5]
    assert [encode_token(PreviousDraw(draw)) for draw in draws.tolist()] == encode_draw(draws).tolist()
    assert (encode_draw(draws) < 0).all()
    assert decode_draw(encode_draw(draws)).tolist() == draws.tolist()


def test_an_id_that_alone_may_come_has_a_number_that_is_no_masks() -> None:
    ids = np.array([0, 7, 4095], np.int32)
    assert (encode_only_id(ids) < ANY_ID).all()
    assert decode_only_id(encode_only_id(ids)).tolist() == ids.tolist()


def test_an_array_of_sampling_rows_has_their_bytes() -> None:
    values = dict(zip(SAMPLING_ROW.names, range(5, 50), strict=False)) | {"key": 2**64 - 1, "temperature": 0.5}
    [row] = np.frombuffer(SamplingRow(**values), SAMPLING_ROW)
    assert {name: row[name] for name in SAMPLING_ROW.names} == values
    assert SAMPLING_ROW.itemsize % 8 == 0, "rows are moved in words of 8 bytes"


def test_sampling_params_are_cut_and_packed_like_other_arrays() -> None:
    params = SamplingParams(np.zeros(5, SAMPLING_ROW), np.arange(5))
    params.rows["top_k"] = range(5)
    arrays = {name: getattr(params.first(3), name) for name in ("rows", "output_positions")}
    staging = np.empty(packed_bytes(array.nbytes for array in arrays.values()), np.uint8)
    num_bytes, offsets = pack(arrays, staging)
    assert num_bytes == staging.nbytes
    assert view(staging, offsets["rows"], (3,), SAMPLING_ROW)["top_k"].tolist() == [0, 1, 2]
    assert view(staging, offsets["output_positions"], (3,), np.int64).tolist() == [0, 1, 2]


def test_the_arrays_of_a_step_are_all_that_it_has_but_for_its_states() -> None:
    rows = np.zeros(1, np.int32)
    step = Step(*(np.full(1, number, np.int32) for number in range(9)), states=StateRows(rows, rows))
    arrays = step.arrays()
    assert [int(array[0]) for array in arrays.values()] == list(range(9))
    assert replace(step, states=None).arrays() == Step(**arrays).arrays() == arrays
