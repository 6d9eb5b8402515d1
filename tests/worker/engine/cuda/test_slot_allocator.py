import pytest

from kernels.decode_rows import RowUpdates
from tests.worker.engine.generation import sequence
from worker.engine.batch_builder import build_sampling_row
from worker.engine.cuda.slot_allocator import SlotAllocator
from worker.engine.logits.edit_rows import EditRows
from worker.engine.sequence import Chunk, Sequence

NUM_ROWS, MAX_BLOCKS, BLOCK_TOKENS = 4, 8, 4


def decoding(token_id: int, block_ids: list[int], **options: object) -> Sequence:
    """A sequence of which all but the last token is computed."""
    new = sequence([1, token_id], block_ids, **options)
    new.num_computed = 1
    return new


def chunks(*sequences: Sequence) -> list[Chunk]:
    return [Chunk(each, 1, True) for each in sequences]


def launch(allocator: SlotAllocator, *sequences: Sequence, num_rows: int = NUM_ROWS) -> tuple[list[int], set[int]]:
    """Allocate and count a decode step; the rows, and those that an update is sent for."""
    rows, updates = allocator.allocate(chunks(*sequences), num_rows)
    for each in sequences:
        each.launch(1, True)
        each.append(7)
    allocator.check_invariants()
    return rows.tolist(), set(updates.rows)


@pytest.fixture
def allocator() -> SlotAllocator:
    return SlotAllocator(NUM_ROWS, MAX_BLOCKS, BLOCK_TOKENS, EditRows(NUM_ROWS, 32))


def test_the_first_step_empties_every_other_row(allocator: SlotAllocator):
    first, second = decoding(5, [3], seed=9), decoding(6, [4, 2])
    rows, updates = allocator.allocate(chunks(first, second), NUM_ROWS)
    assert rows.tolist() == [0, 1]
    expected = RowUpdates()
    expected.put(0, 5, position=1, output_position=0, sampling_row=build_sampling_row(first, -1))
    expected.put(1, 6, position=1, output_position=0, sampling_row=build_sampling_row(second, -1))
    expected.empty(2)
    expected.empty(3)
    assert updates.rows == expected.rows
    block_updates = dict(zip(updates.block_entries, updates.block_ids, strict=True))
    assert block_updates == {0: 3, MAX_BLOCKS: 4, MAX_BLOCKS + 1: 2}


def test_for_a_sequence_that_goes_on_nothing_is_sent_but_new_blocks(allocator: SlotAllocator):
    first, second = decoding(5, [3]), decoding(6, [4])
    launch(allocator, first, second)
    rows, updates = allocator.allocate(chunks(first, second), NUM_ROWS)
    assert (rows.tolist(), bool(updates)) == ([0, 1], False)


def test_the_mean_context_is_that_of_the_blocks_of_those_who_decode(allocator: SlotAllocator):
    assert allocator.mean_context == 0
    first, second = decoding(5, [3]), decoding(6, [4, 2, 1])
    launch(allocator, first, second)
    assert allocator.mean_context == 2 * BLOCK_TOKENS
    launch(allocator, first)
    assert allocator.mean_context == BLOCK_TOKENS


@pytest.mark.parametrize("is_same_list", [True, False])
def test_a_new_block_is_sent_before_the_first_token_that_goes_there(allocator: SlotAllocator, is_same_list: bool):
    first, second = decoding(5, [3, 2]), decoding(6, [4])
    same = chunks(first, second)
    for num_tokens in range(2, 2 * BLOCK_TOKENS + 1):
        if num_tokens == BLOCK_TOKENS + 1:
            second.block_ids.append(1)
        rows, updates = allocator.allocate(same if is_same_list else chunks(first, second), NUM_ROWS)
        assert rows.tolist() == [0, 1]
        if num_tokens == BLOCK_TOKENS + 1:
            assert (updates.rows, updates.block_entries, updates.block_ids) == ({}, [MAX_BLOCKS + 1], [1])
        elif num_tokens > 2:
            assert not updates
        for each in (first, second):
            each.launch(1, True)
            each.append(7)


def test_a_row_is_told_once_where_its_state_is_and_from_which_one_it_goes_on(allocator: SlotAllocator):
    going_on = decoding(5, [3])
    going_on.state_slot, going_on.state_source = 6, 2
    _, updates = allocator.allocate(chunks(going_on), NUM_ROWS)
    expected = RowUpdates()
    row = build_sampling_row(going_on, -1)
    expected.put(0, 5, position=1, output_position=0, sampling_row=row, state=(6, 2))
    assert updates.rows[0] == expected.rows[0]
    going_on.launch(1, True)
    going_on.append(7)
    with pytest.raises(AssertionError, match="the state of the step before"):
        allocator.allocate(chunks(going_on), NUM_ROWS)
    going_on.state_source = 6
    assert not allocator.allocate(chunks(going_on), NUM_ROWS)[1]


def test_the_row_of_one_that_left_is_emptied_and_given_to_the_next_that_comes(allocator: SlotAllocator):
    first, second, third = decoding(5, [3]), decoding(6, [4]), decoding(8, [0])
    launch(allocator, first, second)
    assert launch(allocator, second) == ([1], {0})
    assert launch(allocator, second, third) == ([1, 0], {0})


def test_a_sequence_moves_when_its_row_lies_beyond_a_smaller_step(allocator: SlotAllocator):
    first, second, third = decoding(5, [3]), decoding(6, [4]), decoding(8, [0])
    launch(allocator, first, second, third)
    rows, updated = launch(allocator, third, num_rows=1)
    assert rows == [0]
    assert updated == {0, 1, 2}


def test_a_new_block_table_of_the_same_sequence_is_sent_whole(allocator: SlotAllocator):
    only = decoding(5, [3, 1])
    launch(allocator, only)
    only.drop_blocks()  # a preemption
    only.block_ids = [2, 6]
    only.num_computed = 2
    _, updates = allocator.allocate(chunks(only), NUM_ROWS)
    assert (updates.block_entries, updates.block_ids) == ([0, 1], [2, 6])


def test_a_row_that_a_sequence_left_and_got_again_is_sent_whole(allocator: SlotAllocator):
    first, second = decoding(5, [3, 1]), decoding(6, [4])
    launch(allocator, first, second)
    launch(allocator, second)
    rows, updates = allocator.allocate(chunks(first, second), NUM_ROWS)
    assert rows.tolist() == [0, 1]
    assert (updates.block_entries, updates.block_ids) == ([0, 1], [3, 1])


def test_after_a_step_of_another_kind_every_row_is_sent_again_with_the_draw_that_it_goes_on_from(
    allocator: SlotAllocator,
):
    first, second = decoding(5, [3]), decoding(6, [4])
    launch(allocator, first, second)
    for each in (first, second):
        each.launch(1, True)
    allocator.interrupt({first: 1, second: 0})
    assert (allocator.previous_draw(first), allocator.previous_draw(second)) == (1, 0)
    rows, updates = allocator.allocate(chunks(first, second), NUM_ROWS)
    assert rows.tolist() == [0, 1]
    assert updates.rows.keys() == {0, 1}
    assert (allocator.previous_draw(first), allocator.previous_draw(second)) == (0, 1)


def test_who_gets_a_row_is_given_one_of_the_edits_too_and_keeps_it_in_another_row():
    edit_rows = EditRows(NUM_ROWS, 32)
    allocator = SlotAllocator(NUM_ROWS, MAX_BLOCKS, BLOCK_TOKENS, edit_rows)
    plain, edited = decoding(5, [3]), decoding(6, [4], repetition_penalty=1.5)
    launch(allocator, plain, edited)
    row = edit_rows.row_of(edited)
    assert [len(resets.resets) for resets in edit_rows.take_resets()] == [1]
    assert launch(allocator, edited, num_rows=1)[0] == [0]
    assert edit_rows.row_of(edited) == row
    assert edit_rows.take_resets() == [], "the device counts what it draws"


def test_a_sequence_is_sent_again_when_another_token_than_its_draw_was_appended(allocator: SlotAllocator):
    only = decoding(5, [3])
    launch(allocator, only)
    assert launch(allocator, only) == ([0], set())
    only.revision += 1
    only.token_ids[-1] = 9
    rows, updates = allocator.allocate(chunks(only), NUM_ROWS)
    expected = RowUpdates()
    expected.put(0, 9, position=3, output_position=2, sampling_row=build_sampling_row(only, -1))
    assert (rows.tolist(), updates.rows) == ([0], expected.rows)
