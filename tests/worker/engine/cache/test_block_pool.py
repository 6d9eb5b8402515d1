import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.cache.block_pool import BlockPool


def test_a_new_pool_hands_out_every_block_once():
    pool = BlockPool(5)
    assert sorted(pool.allocate() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0


def test_blocks_with_useful_contents_are_handed_out_last_and_the_oldest_of_them_first():
    pool = BlockPool(4)
    blocks = [pool.allocate() for _ in range(4)]
    pool.release(blocks[0], useful=True)
    pool.release(blocks[1], useful=True)
    pool.release(blocks[2], useful=False)
    assert [pool.allocate() for _ in range(3)] == [blocks[2], blocks[0], blocks[1]]


def test_a_free_block_can_be_retained_again_and_is_then_not_handed_out():
    pool = BlockPool(2)
    block_id = pool.allocate()
    pool.release(block_id, useful=True)
    pool.retain(block_id)
    assert pool.allocate() != block_id
    assert pool.num_free == 0


def test_releasing_a_free_block_is_a_bug_that_is_caught():
    pool = BlockPool(1)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(0, useful=False)


def test_allocating_from_an_empty_pool_is_a_bug_that_is_caught():
    with pytest.raises(AssertionError, match="no free block"):
        BlockPool(0).allocate()


class PoolAgainstCounts(RuleBasedStateMachine):
    """The pool against the simplest model of it: a dictionary of counts."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.counts = dict.fromkeys(range(6), 0)

    @precondition(lambda self: self.pool.num_free)
    @rule()
    def allocate(self) -> None:
        block_id = self.pool.allocate()
        assert self.counts[block_id] == 0
        self.counts[block_id] = 1

    @rule(block_id=st.integers(0, 5))
    def retain(self, block_id: int) -> None:
        self.pool.retain(block_id)
        self.counts[block_id] += 1

    @rule(block_id=st.integers(0, 5), useful=st.booleans())
    def release(self, block_id: int, useful: bool) -> None:
        if self.counts[block_id]:
            self.pool.release(block_id, useful=useful)
            self.counts[block_id] -= 1

    @invariant()
    def counts_agree(self) -> None:
        self.pool.check_invariants()
        self.pool.check_tables([[block_id] * count for block_id, count in self.counts.items()])
        assert self.pool.num_free == sum(not count for count in self.counts.values())
        assert self.pool.num_used == sum(map(bool, self.counts.values()))


TestPoolAgainstCounts = PoolAgainstCounts.TestCase
TestPoolAgainstCounts.settings = settings(max_examples=40, stateful_step_count=40, derandomize=True, deadline=None)
