import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.cache import prefix_cache
from worker.engine.cache.prefix_cache import PrefixCache, pack_ids


def hashes_of(cache: PrefixCache, token_ids: list[int], root: bytes = b"") -> list[bytes]:
    hashes: list[bytes] = []
    cache.extend(hashes, root, token_ids)
    return hashes


def test_only_full_blocks_have_a_hash():
    cache = PrefixCache(4)
    assert len(hashes_of(cache, list(range(11)))) == 2


def test_a_hash_depends_on_everything_before_its_block():
    cache = PrefixCache(2)
    assert hashes_of(cache, [1, 2, 3, 4])[1] != hashes_of(cache, [9, 2, 3, 4])[1]


def test_different_roots_share_nothing():
    cache = PrefixCache(2)
    assert hashes_of(cache, [1, 2], b"a") != hashes_of(cache, [1, 2], b"b")


def test_the_longest_known_prefix_matches():
    cache = PrefixCache(2)
    known = hashes_of(cache, [1, 2, 3, 4, 5, 6])
    for block_id, block_hash in enumerate(known):
        cache.insert(block_hash, block_id)
    assert cache.match(hashes_of(cache, [1, 2, 3, 4, 7, 8])) == [0, 1]


def test_a_gap_ends_the_match():
    cache = PrefixCache(2)
    known = hashes_of(cache, [1, 2, 3, 4, 5, 6])
    for block_id, block_hash in enumerate(known):
        cache.insert(block_hash, block_id)
    cache.forget(1)
    assert cache.match(known) == [0]


def test_the_first_block_of_equal_contents_stays_known():
    cache = PrefixCache(2)
    (block_hash,) = hashes_of(cache, [1, 2])
    cache.insert(block_hash, 3)
    cache.insert(block_hash, 4)
    assert cache.match([block_hash]) == [3]
    assert 4 not in cache
    cache.forget(4)
    assert cache.match([block_hash]) == [3]
    cache.check_invariants()


@settings(max_examples=60)
@given(token_ids=st.lists(st.integers(0, 3), max_size=24), cuts=st.lists(st.integers(0, 24), max_size=5))
def test_hashing_piece_by_piece_equals_hashing_at_once(token_ids: list[int], cuts: list[int]):
    cache = PrefixCache(3)
    hashes: list[bytes] = []
    for cut in sorted(cuts):
        cache.extend(hashes, b"", token_ids[:cut])
    cache.extend(hashes, b"", token_ids)
    assert hashes == hashes_of(cache, token_ids)


@settings(max_examples=60)
@given(token_ids=st.lists(st.integers(0, 3), max_size=24), num_packed=st.integers(0, 24), start=st.integers(0, 24))
def test_hashes_are_the_same_whether_ids_come_packed_or_not(token_ids: list[int], num_packed: int, start: int):
    hashes = hashes_of(PrefixCache(3), token_ids[:start])
    PrefixCache(3).extend(hashes, b"", token_ids, pack_ids(token_ids[:num_packed]))
    assert hashes == hashes_of(PrefixCache(3), token_ids)


def test_runs_that_were_hashed_before_give_the_same_hashes_and_the_oldest_are_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix_cache, "RUN_BLOCKS", 2)
    monkeypatch.setattr(prefix_cache, "MOST_RUNS", 3)
    cache = PrefixCache(2)
    prompts = [[first, *range(10)] for first in (1, 2, 1, 3, 1, 2)]
    for prompt in prompts:
        hashes = hashes_of(cache, prompt)
        assert hashes == hashes_of(PrefixCache(2), prompt) and len(set(hashes)) == 5
        assert len(cache._runs) <= 3


@settings(max_examples=100)
@given(first=st.lists(st.integers(0, 2), max_size=12), second=st.lists(st.integers(0, 2), max_size=12))
def test_two_sequences_match_exactly_as_far_as_their_full_blocks_agree(first: list[int], second: list[int]):
    cache = PrefixCache(2)
    for block_id, block_hash in enumerate(hashes_of(cache, first)):
        cache.insert(block_hash, block_id)
    num_equal = 0
    while first[: num_equal + 2] == second[: num_equal + 2] and num_equal + 2 <= min(len(first), len(second)):
        num_equal += 2
    assert cache.match(hashes_of(cache, second)) == list(range(num_equal // 2))
