from collections.abc import Collection

import pytest

from worker.contract import Sampling
from worker.engine.cache.block_tables import BlockTables
from worker.engine.sequence import Sequence

BLOCK_TOKENS = 4


def block_tables(*, num_blocks: int = 8, rewrites_blocks: bool = False) -> BlockTables:
    return BlockTables(num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, rewrites_blocks=rewrites_blocks)


def sequence(num_tokens: int) -> Sequence:
    return Sequence("r", 0, Sampling(max_tokens=9), 0, list(range(num_tokens)), num_tokens, 9)


def start(tables: BlockTables, each: Sequence, *, beside: Collection[Sequence] = (), num_foreseen: int = 0) -> bool:
    return tables.start(each, tables.match(each), beside=beside, num_foreseen=num_foreseen)


def started(tables: BlockTables, num_tokens: int, *, num_computed: int = 0) -> Sequence:
    each = sequence(num_tokens)
    assert start(tables, each)
    each.num_computed = max(num_computed, each.num_computed)
    tables.publish(each)
    return each


def test_a_sequence_that_starts_has_blocks_for_all_its_tokens():
    tables = block_tables()
    each = started(tables, 9)
    assert len(each.block_ids) == 3
    assert tables.pool.num_free == 5
    tables.check_invariants([each])


def test_one_that_leaves_no_block_for_each_of_the_others_does_not_start_and_holds_none():
    tables = block_tables(num_blocks=4)
    each, others = sequence(9), [sequence(1), sequence(1)]
    assert not start(tables, each, beside=others)
    tables.check_invariants([])
    assert start(tables, each, beside=others[:1])


# Of 4 tokens and 9 more each, in blocks of 4: after 8 steps they have 12 tokens, or 3 blocks; after 9 a fourth one.
@pytest.mark.parametrize(("num_foreseen", "num_blocks"), [(4, 4), (8, 6), (9, 8), (100, 8)])
def test_one_starts_if_all_that_run_find_their_blocks_for_as_many_steps_as_are_foreseen(
    num_foreseen: int, num_blocks: int
):
    for blocks, starts in ((num_blocks - 1, False), (num_blocks + 2, True)):  # with a block to spare for each
        tables = block_tables(num_blocks=blocks)
        first, second = started(tables, 4), Sequence("other", 0, Sampling(max_tokens=9), 0, [90, 91, 92, 93], 4, 9)
        assert start(tables, second, beside=[first], num_foreseen=num_foreseen) == starts
        tables.check_invariants([first, second] if starts else [first])


def test_what_one_holds_that_ends_before_is_there_for_the_others():
    tables = block_tables()
    ending, other = started(tables, 12), Sequence("other", 0, Sampling(max_tokens=12), 0, [90, 91, 92, 93], 4, 12)
    ending.most_tokens = 24
    assert not start(tables, other, beside=[ending], num_foreseen=12)
    ending.most_tokens = 16
    assert start(tables, other, beside=[ending], num_foreseen=12)


def test_only_full_blocks_of_computed_tokens_are_shared():
    tables = block_tables()
    first = started(tables, 11, num_computed=6)
    second = started(tables, 11)
    assert second.block_ids[:1] == first.block_ids[:1]
    assert not set(second.block_ids[1:]) & set(first.block_ids)
    assert second.num_computed == second.num_published * BLOCK_TOKENS == 4
    tables.check_invariants([first, second])


def test_known_blocks_that_nobody_holds_are_not_counted_as_free_for_the_rest():
    tables = block_tables(num_blocks=3)
    tables.release(started(tables, 8, num_computed=8))
    assert tables.pool.num_free == 3
    assert not start(tables, sequence(13))
    assert started(tables, 12).num_computed == 8


def test_the_last_token_is_computed_again_where_blocks_may_be_rewritten_else_the_last_block():
    for rewrites_blocks, num_computed in ((True, 7), (False, 4)):
        tables = block_tables(rewrites_blocks=rewrites_blocks)
        started(tables, 8, num_computed=8)
        assert started(tables, 8).num_computed == num_computed


def test_a_sequence_grows_as_far_as_there_are_blocks():
    tables = block_tables(num_blocks=3)
    each = started(tables, 4)
    for token_id in range(8):
        each.append_forced(token_id)
    assert tables.grow(each)
    assert len(each.block_ids) == 3
    each.append_forced(9)
    assert not tables.grow(each)
    tables.check_invariants([each])


def test_what_is_given_back_stays_known_until_its_blocks_are_handed_out_its_end_first():
    tables = block_tables(num_blocks=3)
    first = started(tables, 12, num_computed=12)
    tables.release(first)
    assert (first.block_ids, first.num_computed, first.num_published) == ([], 0, 0)
    other = sequence(1)
    other.token_ids = [99]
    assert start(tables, other)
    again = sequence(13)
    assert len(tables.match(again)) == 2
    tables.check_invariants([other])


def test_what_is_to_be_forgotten_is_found_by_nobody():
    tables = block_tables()
    faulty = started(tables, 12, num_computed=12)
    tables.forget(faulty)
    assert started(tables, 12).num_computed == 0


@pytest.fixture
def waits_for_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.cache.block_tables.LEAST_AWAITED_TOKENS", 2 * BLOCK_TOKENS)


@pytest.mark.usefixtures("waits_for_two_blocks")
@pytest.mark.parametrize("rewrites_blocks", [False, True])
def test_a_prefix_that_another_sequence_computes_is_awaited_until_it_is_known(rewrites_blocks: bool):
    tables = block_tables(rewrites_blocks=rewrites_blocks)
    leader, waiting = started(tables, 10), sequence(13)
    assert tables.awaits_prefix(waiting)
    leader.num_computed = 4
    tables.publish(leader)
    assert waiting.waits_for_prefix
    leader.num_computed = 8
    tables.publish(leader)
    assert not waiting.waits_for_prefix
    assert not tables.awaits_prefix(waiting)
    assert start(tables, waiting)
    assert waiting.num_computed == 8
    tables.check_invariants([leader, waiting])


@pytest.mark.usefixtures("waits_for_two_blocks")
@pytest.mark.parametrize("rewrites_blocks", [False, True])
def test_a_prefix_is_not_awaited_that_is_short_or_known_or_another_ones(rewrites_blocks: bool):
    tables = block_tables(rewrites_blocks=rewrites_blocks)
    leader = started(tables, 7)
    assert not tables.awaits_prefix(sequence(13)), "one block"
    tables.release(leader)
    leader = started(tables, 12, num_computed=4)
    assert not tables.awaits_prefix(sequence(9)), "one block more than is known"
    alone = sequence(13)
    alone.hash_root = b"another"
    assert not tables.awaits_prefix(alone)
    reporting = sequence(13)
    reporting.prompt_logprobs = []
    assert not tables.awaits_prefix(reporting), "it computes its whole prompt"


@pytest.mark.usefixtures("waits_for_two_blocks")
@pytest.mark.parametrize("rewrites_blocks", [False, True])
def test_nobody_waits_for_a_sequence_that_left(rewrites_blocks: bool):
    tables = block_tables(rewrites_blocks=rewrites_blocks)
    leader, waiting = started(tables, 10), sequence(13)
    assert tables.awaits_prefix(waiting)
    tables.release(leader)
    assert not waiting.waits_for_prefix
    assert not tables.awaits_prefix(waiting)
    tables.check_invariants([])


@pytest.mark.usefixtures("waits_for_two_blocks")
def test_blocks_that_begin_as_nobody_knows_are_hashed_once_their_step_is_launched():
    tables = block_tables(rewrites_blocks=True)
    each, waiting = sequence(14), sequence(14)
    assert start(tables, each)
    assert not each.block_hashes
    each.num_computed = 4
    tables.publish(each)
    assert len(each.block_hashes) == 3
    tables.check_invariants([each])
    assert tables.awaits_prefix(waiting)
    each.num_computed = 12
    tables.publish(each)
    assert tables.match(waiting) == each.block_ids[:3]


def test_blocks_that_are_to_be_published_later_are_known_to_whoever_asks_and_when_their_sequence_leaves():
    for leaves in (False, True):
        tables = block_tables()
        first = started(tables, 9)
        first.num_computed = 9
        tables.publish_later(first)
        assert first.num_published == 0
        if leaves:
            tables.release(first)
        second = sequence(9)
        assert len(tables.match(second)) == 2
    tables.publish_all()
    tables.check_invariants([])


def test_of_those_that_are_put_off_some_are_published_at_a_time_the_first_ones_first():
    tables = block_tables()
    put_off = [sequence(4) for _ in range(5)]
    for number, each in enumerate(put_off):
        each.token_ids[0] = 100 + number
        assert start(tables, each)
        each.num_computed = 4
    for each in put_off:
        tables.publish_later(each)
    for expected in ([1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]):
        tables.publish_some(2)
        assert [each.num_published for each in put_off] == expected


def test_what_is_to_be_published_later_is_not_where_nobody_shall_read_it():
    tables = block_tables()
    first = started(tables, 9)
    first.num_computed = 9
    tables.publish_later(first)
    tables.forget(first)
    tables.release(first)
    assert tables.match(sequence(9)) == []
