import pytest

from worker.contract import Sampling
from worker.engine.cache.prefix_cache import PrefixCache
from worker.engine.cache.state_slots import StateSlots
from worker.engine.sequence import Sequence

BLOCK_TOKENS = 4


def state_slots(num_slots: int) -> StateSlots:
    return StateSlots(num_slots=num_slots, block_tokens=BLOCK_TOKENS)


def sequence(num_tokens: int, *, num_prompt: int = 0, first: int = 0) -> Sequence:
    token_ids = list(range(first, first + num_tokens))
    each = Sequence("r", 0, Sampling(max_tokens=9), 0, token_ids, num_prompt or num_tokens, 9)
    PrefixCache(BLOCK_TOKENS).extend(each.block_hashes, b"", token_ids)
    return each


def start(slots: StateSlots, each: Sequence, *, num_known: int = 0) -> None:
    """As far as there is a snapshot among the ``num_known`` blocks that are known."""
    each.num_computed = slots.match(each.block_hashes[:num_known]) * BLOCK_TOKENS
    slots.start(each, num_known=num_known)


def compute(slots: StateSlots, each: Sequence, end: int) -> None:
    each.num_computed = end
    slots.launch(each)


def test_a_sequence_begins_without_a_state_and_then_reads_what_it_wrote():
    slots = state_slots(2)
    each = sequence(3)
    start(slots, each)
    assert (each.state_source, each.snapshot_ends) == (None, [])
    slots.check_invariants([each])
    compute(slots, each, 2)
    assert each.state_source == each.state_slot
    slots.check_invariants([each])
    slots.release(each)
    assert (each.state_slot, each.state_source, slots.pool.num_used) == (None, None, 0)


def test_a_snapshot_is_the_slot_that_a_sequence_leaves_and_is_held_until_its_next_step():
    slots = state_slots(3)
    each = sequence(6)
    start(slots, each)
    assert each.snapshot_ends == [4]
    left = each.state_slot
    compute(slots, each, 4)
    assert each.state_source == left != each.state_slot
    assert slots.pool.num_used == 2
    slots.check_invariants([each])
    compute(slots, each, 6)
    assert each.state_source == each.state_slot != left
    assert slots.pool.num_used == 1
    again = sequence(7)
    start(slots, again, num_known=1)
    assert (again.num_computed, again.state_source) == (4, left)
    slots.check_invariants([each, again])


@pytest.mark.parametrize(
    ("num_tokens", "num_prompt", "num_known", "ends"),
    [(4, 4, 0, []), (5, 5, 0, [4]), (9, 9, 0, [8]), (9, 9, 1, [4, 8]), (9, 9, 2, [8]), (17, 6, 4, [4, 16])],
)
def test_snapshots_are_wanted_at_the_last_block_of_a_prompt_and_where_known_blocks_end(
    num_tokens: int, num_prompt: int, num_known: int, ends: list[int]
):
    slots = state_slots(1)
    each = sequence(num_tokens, num_prompt=num_prompt)
    start(slots, each, num_known=num_known)
    assert each.snapshot_ends == ends


def test_the_longest_prefix_with_a_snapshot_counts_whatever_of_its_beginning_has_one():
    slots = state_slots(3)
    first = sequence(13)
    start(slots, first)
    compute(slots, first, 12)
    assert [slots.match(first.block_hashes[:num_known]) for num_known in range(4)] == [0, 0, 0, 3]


def test_there_is_no_second_snapshot_of_a_prefix():
    slots = state_slots(4)
    both = [sequence(6), sequence(6)]
    for each in both:
        start(slots, each)
    left = [each.state_slot for each in both]
    for each in both:
        compute(slots, each, 4)
    assert [each.state_source == each.state_slot for each in both] == [False, True]
    assert both[1].state_slot == left[1]
    slots.check_invariants(both)


def test_without_a_free_slot_there_is_no_snapshot():
    slots = state_slots(1)
    each = sequence(6)
    start(slots, each)
    compute(slots, each, 4)
    assert each.state_source == each.state_slot
    assert slots.match(each.block_hashes) == 0
    slots.check_invariants([each])


def test_a_sequence_that_needs_a_slot_gets_that_of_the_least_recently_used_snapshot():
    slots = state_slots(3)
    kept = [sequence(6, first=first) for first in (0, 100, 200)]
    for each in kept[:2]:
        start(slots, each)
        compute(slots, each, 4)
        slots.release(each)
    reader = sequence(7)
    start(slots, reader, num_known=1)
    slots.release(reader)
    others = [sequence(3, first=300), sequence(3, first=400)]
    for each in others:
        start(slots, each)
    assert [slots.match(each.block_hashes[:1]) for each in kept] == [1, 0, 0]
    slots.check_invariants(others)


def test_a_sequence_takes_the_slot_of_the_snapshot_it_begins_with_if_no_other_is_free():
    slots = state_slots(2)
    first = sequence(6)
    start(slots, first)
    compute(slots, first, 4)
    compute(slots, first, 6)
    second = sequence(6)
    start(slots, second, num_known=1)
    assert second.state_slot == second.state_source != first.state_slot
    assert second.num_computed == 4
    assert slots.match(second.block_hashes) == 0, "it is about to be overwritten"
    slots.check_invariants([first, second])
    slots.release(second)
    slots.check_invariants([first])


def test_a_snapshot_that_is_about_to_be_read_stays_although_its_sequence_leaves():
    slots = state_slots(4)
    first = sequence(6)
    start(slots, first)
    compute(slots, first, 4)
    reader = sequence(6)
    start(slots, reader, num_known=1)
    slots.release(first)
    others = [sequence(3, first=100), sequence(3, first=200)]
    for each in others:
        start(slots, each)
        assert each.state_slot != reader.state_source
    slots.check_invariants([reader, *others])


def test_nobody_goes_on_from_the_snapshots_of_a_sequence_that_is_to_be_forgotten():
    slots = state_slots(4)
    faulty, other = sequence(6), sequence(6, first=100)
    for each in (faulty, other):
        start(slots, each)
        compute(slots, each, 4)
    slots.forget(faulty)
    slots.release(faulty)
    assert [slots.match(each.block_hashes) for each in (faulty, other)] == [0, 1]
    slots.check_invariants([other])


def test_a_chunk_that_passes_the_end_of_a_snapshot_is_a_bug_that_is_caught():
    slots = state_slots(2)
    each = sequence(6)
    start(slots, each)
    with pytest.raises(AssertionError, match="beyond a snapshot"):
        compute(slots, each, 5)
