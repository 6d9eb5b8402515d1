"""What a table of masks holds is what whoever reads the numbers thinks it holds."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kernels.batch import ANY_ID, decode_only_id
from orcd.errors import OrcdError
from worker.engine.logits.mask_slots import NO_ID, MaskSlots, num_mask_slots, number_rows
from worker.engine.token_constraint import TokenMask


def mask(number: int) -> TokenMask:
    return TokenMask(number.to_bytes(4, "little"))


@pytest.mark.parametrize("num_slots", [8, 9, 20, num_mask_slots(4)])
def test_masks_lie_where_they_were_sent_to_whatever_had_to_make_room(num_slots: int) -> None:
    slots, table, chance = MaskSlots(num_slots, 4), {}, random.Random(num_slots)
    masks = [mask(number) for number in range(12)]
    num_sent = 0
    for _ in range(500):
        wanted = chance.choices(masks, k=chance.randint(0, 4))
        start, missing = slots.place(wanted)
        assert len(set(missing)) == len(missing) <= 4
        table |= {start + index: each for index, each in enumerate(missing)}
        assert max(table, default=0) < num_slots
        assert [table[slots.numbers[each]] for each in wanted] == wanted
        num_sent += len(missing)
    assert (num_sent == len(masks)) == (num_slots >= 20)


def test_after_it_was_cleared_all_are_sent_again() -> None:
    slots, masks = MaskSlots(8, 4), [mask(1), mask(2)]
    assert slots.place(masks) == (0, masks)
    assert slots.place(masks)[1] == []
    slots.clear()
    assert slots.place(masks)[1] == masks


def test_rows_are_told_their_masks_their_only_ids_or_that_they_have_none() -> None:
    first, second, error = mask(1), mask(2), OrcdError("no")
    numbers, errors = number_rows([0, 2, 3, 5], [second, 33, error, first], {first: 7, second: 9}, 6)
    assert numbers.dtype == np.int32
    assert numbers[[0, 1, 4, 5]].tolist() == [9, ANY_ID, ANY_ID, 7]
    assert [decode_only_id(int(numbers[row])) for row in (2, 3)] == [33, NO_ID]
    assert errors == {3: error}
