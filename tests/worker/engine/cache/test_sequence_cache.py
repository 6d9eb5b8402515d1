from worker.contract import Sampling
from worker.engine.cache.sequence_cache import SequenceCache
from worker.engine.sequence import Sequence


def sequence_cache(*, num_blocks: int = 12, num_states: int = 4, rewrites_blocks: bool = False) -> SequenceCache:
    return SequenceCache(num_blocks=num_blocks, block_tokens=4, num_states=num_states, rewrites_blocks=rewrites_blocks)


def sequence(num_tokens: int) -> Sequence:
    return Sequence("r", 0, Sampling(max_tokens=9), 0, list(range(num_tokens)), num_tokens, 9)


def compute(cache: SequenceCache, each: Sequence, *ends: int) -> None:
    for end in ends:
        each.launch(end - each.num_computed, False)
        cache.block_tables.publish(each)
        if cache.state_slots is not None:
            cache.state_slots.launch(each)
        cache.check_invariants([each])


def test_without_recurrent_layers_a_prefix_is_known_as_far_as_its_blocks_are():
    cache = sequence_cache(num_states=0)
    first, second = sequence(9), sequence(14)
    assert cache.start(first, beside=())
    compute(cache, first, 9)
    assert cache.start(second, beside=())
    assert second.num_computed == 8
    assert (second.state_slot, second.snapshot_ends) == (None, [])
    assert (cache.num_states, cache.num_states_used) == (0, 0)
    cache.check_invariants([first, second])


def test_with_recurrent_layers_a_prefix_is_known_as_far_as_there_is_a_snapshot():
    cache = sequence_cache()
    first, second, third = sequence(7), sequence(14), sequence(14)
    assert cache.start(first, beside=())
    compute(cache, first, 4)
    for token_id in range(7, 13):
        first.append_forced(token_id)
    assert cache.block_tables.grow(first)
    compute(cache, first, 13)  # three blocks are known, and a snapshot behind the first
    assert cache.start(second, beside=())
    assert (second.num_computed, second.snapshot_ends) == (4, [12])
    assert second.block_ids[0] == first.block_ids[0] and not set(second.block_ids[1:]) & set(first.block_ids)
    cache.check_invariants([first, second])
    cache.release(first)
    compute(cache, second, 12)
    assert cache.start(third, beside=())
    assert third.num_computed == 12


def test_a_snapshot_whose_blocks_are_gone_is_no_prefix():
    cache = sequence_cache(num_blocks=3)
    first, second, other = sequence(9), sequence(9), sequence(9)
    other.token_ids = [99] * 9
    for each in (first, other):
        assert cache.start(each, beside=())
        compute(cache, each, 8, 9)
        cache.release(each)
    assert cache.start(second, beside=())
    assert second.num_computed == 0
    cache.check_invariants([second])


def test_the_last_block_is_computed_again_although_blocks_may_be_rewritten():
    for num_states, num_computed in ((0, 7), (4, 4)):
        cache = sequence_cache(num_states=num_states, rewrites_blocks=True)
        first, second = sequence(8), sequence(8)
        assert cache.start(first, beside=())
        compute(cache, first, 4, 8)
        assert cache.start(second, beside=())
        assert second.num_computed == num_computed


def test_a_sequence_that_finds_no_block_or_no_slot_holds_nothing():
    for cache in (sequence_cache(num_blocks=3), sequence_cache(num_states=1)):
        first, second = sequence(9), sequence(3)
        assert cache.start(first, beside=())
        assert not cache.start(second, beside=())
        cache.check_invariants([first])
        cache.release(first)
        assert cache.num_states_used == 0
        assert cache.start(second, beside=())


def test_what_is_to_be_forgotten_is_found_by_nobody():
    cache = sequence_cache()
    faulty, other = sequence(9), sequence(9)
    assert cache.start(faulty, beside=())
    compute(cache, faulty, 8)
    cache.forget(faulty)
    cache.release(faulty)
    assert cache.start(other, beside=())
    assert other.num_computed == 0
    assert cache.state_slots is not None and cache.state_slots.match(other.block_hashes) == 0


def test_with_the_end_of_a_step_those_that_grow_have_blocks_unless_few_are_free_or_they_end():
    cache = sequence_cache(num_states=0)
    first, ending = sequence(4), sequence(4)
    for each in (first, ending):
        assert cache.start(each, beside=())
        each.launch(each.num_pending, True)
    ending.most_tokens = 5
    cache.finish_launch([first, ending], reserve=10)
    assert [len(each.block_ids) for each in (first, ending)] == [1, 1]
    cache.finish_launch([first, ending], reserve=9)
    assert [len(each.block_ids) for each in (first, ending)] == [2, 1]
    cache.check_invariants([first, ending])
