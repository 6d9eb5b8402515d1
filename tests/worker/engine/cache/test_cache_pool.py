import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.cache.cache_pool import CachePool


def test_a_new_pool_hands_out_every_entry_once():
    pool = CachePool(5)
    assert sorted(pool.allocate() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0


def test_entries_with_useful_contents_are_handed_out_last_and_the_oldest_of_them_first():
    pool = CachePool(4)
    entries = [pool.allocate() for _ in range(4)]
    pool.release(entries[0], useful=True)
    pool.release(entries[1], useful=True)
    pool.release(entries[2], useful=False)
    assert [pool.allocate() for _ in range(3)] == [entries[2], entries[0], entries[1]]


def test_entries_that_were_never_handed_out_come_between_those_without_and_those_with_useful_contents():
    pool = CachePool(5)
    useful, useless, later_useless = (pool.allocate() for _ in range(3))
    pool.release(useful, useful=True)
    pool.release(useless, useful=False)
    pool.release(later_useless, useful=False)
    assert [pool.allocate() for _ in range(5)] == [later_useless, useless, 3, 4, useful]


def test_entries_are_handed_out_together_in_the_order_that_single_ones_have():
    pool = CachePool(5)
    useful, useless, _ = pool.allocate_all(3)
    pool.release(useful, useful=True)
    pool.release(useless, useful=False)
    assert pool.allocate_all(4) == [useless, 3, 4, useful]
    assert pool.num_free == 0
    pool.check_invariants()


def test_a_free_entry_can_be_retained_again_and_is_then_not_handed_out():
    pool = CachePool(2)
    entry = pool.allocate()
    pool.release(entry, useful=True)
    pool.retain(entry)
    assert pool.allocate() != entry
    assert pool.num_free == 0


def test_entries_of_a_prefix_are_retained_together():
    pool = CachePool(4)
    held, useful, _ = (pool.allocate() for _ in range(3))
    pool.release(useful, useful=True)
    pool.retain_all([held, useful])
    assert [pool.num_references(entry) for entry in (held, useful)] == [2, 1]
    pool.check_invariants()


def test_releasing_a_free_entry_is_a_bug_that_is_caught():
    pool = CachePool(1)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(0, useful=False)


def test_allocating_from_an_empty_pool_is_a_bug_that_is_caught():
    with pytest.raises(AssertionError, match="too few free entries"):
        CachePool(0).allocate()


class PoolAgainstCounts(RuleBasedStateMachine):
    """The pool against the simplest model of it: a dictionary of counts."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = CachePool(6)
        self.counts = dict.fromkeys(range(6), 0)

    @precondition(lambda self: self.pool.num_free)
    @rule()
    def allocate(self) -> None:
        entry = self.pool.allocate()
        assert self.counts[entry] == 0
        self.counts[entry] = 1

    @rule(entry=st.integers(0, 5))
    def retain(self, entry: int) -> None:
        self.pool.retain(entry)
        self.counts[entry] += 1

    @rule(entry=st.integers(0, 5), useful=st.booleans())
    def release(self, entry: int, useful: bool) -> None:
        if self.counts[entry]:
            self.pool.release(entry, useful=useful)
            self.counts[entry] -= 1

    @invariant()
    def counts_agree(self) -> None:
        self.pool.check_invariants()
        self.pool.check_holders([[entry] * count for entry, count in self.counts.items()])
        assert self.pool.num_free == sum(not count for count in self.counts.values())
        assert self.pool.num_used == sum(map(bool, self.counts.values()))


TestPoolAgainstCounts = PoolAgainstCounts.TestCase
TestPoolAgainstCounts.settings = settings(max_examples=40, stateful_step_count=40)
