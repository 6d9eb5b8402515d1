from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.generation import sequence
from worker.engine.cache.prefix_tree import PrefixGroup, PrefixTree
from worker.engine.sequence import Sequence

BLOCK_TOKENS, UNIT_TOKENS = 4, 8  # a level is two blocks


def holding(*block_ids: int) -> Sequence:
    """A sequence about to compute the first token behind these blocks."""
    each = sequence([0] * (len(block_ids) * BLOCK_TOKENS + 1), [*block_ids, 1000 + sum(block_ids)])
    each.num_computed = len(block_ids) * BLOCK_TOKENS
    return each


def groups_of(*sequences: Sequence) -> list[PrefixGroup]:
    tree = PrefixTree(BLOCK_TOKENS, UNIT_TOKENS)
    tree.update(sequences)
    return tree.groups()


def test_sequences_with_the_same_first_blocks_are_a_group_as_far_as_all_of_them_agree():
    a, b, c = holding(1, 2, 3, 4, 5), holding(1, 2, 3, 4, 6, 7), holding(9, 8)
    assert groups_of(a, b, c) == [PrefixGroup((a, b), 16)]


def test_a_unit_is_shared_whole_or_not_at_all():
    a, b = holding(1, 2, 3), holding(1, 2, 3)
    assert groups_of(a, b) == [PrefixGroup((a, b), 8)]
    assert groups_of(holding(1, 2), holding(1, 3)) == []


def test_what_is_not_computed_is_not_shared():
    a, b = holding(1, 2, 3, 4), holding(1, 2, 3, 4)
    b.num_computed = 15
    assert groups_of(a, b) == [PrefixGroup((a, b), 8)]


def test_the_same_block_behind_other_blocks_is_not_shared():
    assert groups_of(holding(1, 2, 3, 4), holding(5, 6, 3, 4)) == []


def test_groups_are_those_with_which_fewest_tokens_are_read():
    a, b, c, d = holding(1, 2, 3, 4), holding(1, 2, 3, 4), holding(1, 2, 5, 6), holding(1, 2, 5, 6)
    assert groups_of(a, b, c, d) == [PrefixGroup((a, b), 16), PrefixGroup((c, d), 16)]  # 32 less, all together 24
    others = [holding(1, 2, 10 + number, 11 + number) for number in range(3)]
    assert groups_of(a, b, c, d, *others) == [PrefixGroup((a, b, c, d, *others), 8)]  # 48 less


def test_levels_are_whole_blocks_where_a_block_is_no_part_of_a_unit():
    tree = PrefixTree(6, 8)  # 24 tokens, 4 blocks
    a, b = (sequence([0] * 31, [1, 2, 3, 4, 5]) for _ in range(2))
    a.num_computed = b.num_computed = 30
    tree.update([a, b])
    assert tree.groups() == [PrefixGroup((a, b), 24)]


def test_a_sequence_whose_table_became_another_is_put_where_it_belongs_now():
    tree = PrefixTree(BLOCK_TOKENS, UNIT_TOKENS)
    a, b = holding(1, 2), holding(1, 2)
    tree.update([a, b])
    b.drop_blocks()
    b.block_ids, b.num_computed = [3, 4, 5], 8
    tree.update([a, b])
    assert tree.groups() == []


def test_groups_of_long_prefixes_of_many_sequences_are_found():
    """As deep as a context of 512,000 tokens in blocks of 16, which sequences leave one after the other."""
    sequences = [holding(*range(2 * depth), 10_000 + depth) for depth in range(1, 2000, 20)]
    (group,) = [group for group in groups_of(*sequences) if len(group.sequences) > 40][:1]
    assert group.num_tokens >= 8 * 900


@settings(max_examples=30)
@given(
    tables=st.lists(st.lists(st.integers(0, 1), max_size=5), max_size=7),
    steps=st.lists(st.sets(st.integers(0, 6)), max_size=6),
)
def test_whoever_came_and_left_the_groups_are_those_of_a_new_tree(tables: list[list[int]], steps: list[set[int]]):
    sequences = [holding(*(10 * i + bit for i, bit in enumerate(table))) for table in tables]
    tree = PrefixTree(BLOCK_TOKENS, UNIT_TOKENS)
    for step in steps:
        present = [sequences[number] for number in sorted(step) if number < len(sequences)]
        tree.update(present)
        found = [set(group.sequences) for group in tree.groups()]
        assert sum(map(len, found)) == len(set().union(*found))
        assert saved(tree.groups()) == saved(groups_of(*present))
        for group in tree.groups():
            num_blocks = group.num_tokens // BLOCK_TOKENS
            assert len({tuple(each.block_ids[:num_blocks]) for each in group.sequences}) == 1
            assert len(group.sequences) > 1


def saved(groups: list[PrefixGroup]) -> int:
    return sum((len(group.sequences) - 1) * group.num_tokens for group in groups)
