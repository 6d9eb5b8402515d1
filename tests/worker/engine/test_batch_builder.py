import numpy as np
import pytest

from kernels.batch import SAMPLING_ROW, PreviousDraw, encode_token
from orcd.sampling import PARAMETERS, SamplingFields
from tests.worker.engine.context_model import check_shapes
from tests.worker.engine.generation import sequence
from worker.engine.batch_builder import (
    PromptTokens,
    build_prefix_groups,
    build_report_params,
    build_sampling_params,
    build_sampling_row,
    build_step,
    draw_key,
    prompt_tokens,
)
from worker.engine.cache.prefix_cache import pack_ids
from worker.engine.cache.prefix_tree import PrefixGroup
from worker.engine.sequence import Chunk


def test_a_step_lists_prefill_chunks_and_decodes_one_after_the_other():
    prefill = sequence(list(range(10, 20)), [5, 2, 7])
    prefill.num_computed = 4
    decode = sequence([1, 2, 3, 4, 5, 6], [0, 3], num_prompt=5)
    decode.num_computed = 5
    step = build_step([Chunk(prefill, 3, False), Chunk(decode, 1, True)], block_tokens=4)
    check_shapes(step)
    assert step.token_ids.tolist() == [14, 15, 16, 6]
    assert step.positions.tolist() == [4, 5, 6, 5]
    assert step.slots.tolist() == [8, 9, 10, 13]
    assert step.query_starts.tolist() == [0, 3, 4]
    assert step.context_lengths.tolist() == [7, 6]
    assert step.sequence_lengths.tolist() == [10, 6]
    assert step.block_tables.tolist() == [[5, 2, 7], [0, 3, 0]]
    assert step.logit_rows.tolist() == [3]


def test_a_token_that_only_the_device_knows_is_named_by_its_draw():
    unread = sequence([1, 2, 3], [4])
    unread.launch(3, True)
    step = build_step([Chunk(unread, 1, True)], block_tokens=4, draw_of=lambda _sequence: 6)
    assert step.token_ids.tolist() == [encode_token(PreviousDraw(6))] == [-7]
    assert step.positions.tolist() == [3]
    with pytest.raises(AssertionError):
        build_step([Chunk(unread, 1, True)], block_tokens=4)


def test_a_token_is_named_by_its_draw_although_the_one_before_it_is_not_known_either():
    unread, prompt = sequence([1, 2, 3], [4, 9]), sequence([7, 8], [5])
    unread.launch(3, True)
    unread.launch(1, True)
    step = build_step([Chunk(unread, 1, True), Chunk(prompt, 2, True)], block_tokens=4, draw_of=lambda _sequence: 6)
    assert step.token_ids.tolist() == [-7, 7, 8]


def test_ids_are_taken_from_where_they_are_packed_and_the_others_from_the_list():
    packed, partly = sequence(list(range(10, 20)), [5, 2, 7]), sequence([1, 2, 3, 4, 5, 6], [0, 3])
    packed.packed_ids, partly.packed_ids = pack_ids(packed.token_ids), pack_ids(partly.token_ids[:4])
    packed.num_computed, partly.num_computed = 4, 2
    step = build_step([Chunk(partly, 4, True), Chunk(packed, 3, False), Chunk(partly, 2, False)], block_tokens=4)
    assert step.token_ids.tolist() == [3, 4, 5, 6, 14, 15, 16, 3, 4]


@pytest.mark.parametrize("num_packed", [0, 6, 11])
@pytest.mark.parametrize(("num_computed", "num_tokens"), [(0, 11), (0, 1), (3, 5), (4, 7), (9, 2), (10, 1)])
def test_a_step_of_one_chunk_is_as_that_chunk_among_others(num_computed: int, num_tokens: int, num_packed: int):
    each, other = sequence(list(range(10, 21)), [5, 2, 7]), sequence([1, 2], [0])
    each.packed_ids, each.num_computed = pack_ids(each.token_ids[:num_packed]), num_computed
    chunk = Chunk(each, num_tokens, num_computed + num_tokens == 11)
    alone = build_step([chunk], block_tokens=4)
    check_shapes(alone)
    among = build_step([chunk, Chunk(other, 2, True)], block_tokens=4)
    for name in ("token_ids", "positions", "slots", "sequence_rows"):
        assert getattr(alone, name).tolist() == getattr(among, name)[:num_tokens].tolist(), name
    for name in ("context_lengths", "sequence_lengths", "block_tables"):
        assert getattr(alone, name).tolist() == getattr(among, name)[:1].tolist(), name
    assert alone.query_starts.tolist() == among.query_starts[:2].tolist()
    assert alone.logit_rows.tolist() == among.logit_rows[:-1].tolist()
    assert {array.dtype for array in alone.arrays().values()} == {np.dtype(np.int32)}


def test_sampling_params_are_the_options_of_each_sequence_and_its_place_in_the_output():
    first = sequence([1, 2, 3], [0], num_prompt=2, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, seed=40, choice=2)
    edited = sequence([1], [1], repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logprobs=3)
    params = build_sampling_params([first, edited], {first: -1, edited: 5}.__getitem__)
    assert params.rows["temperature"].tolist() == [0.5, 0.0]
    assert params.rows["top_k"].tolist() == [7, 0]
    np.testing.assert_allclose(params.rows["top_p"], [0.9, 1.0])
    np.testing.assert_allclose(params.rows["min_p"], [0.1, 0.0])
    assert params.rows["key"].tolist() == [42, 0]
    assert params.rows["repetition_penalty"].tolist() == [1.0, 2.0]
    assert params.rows["presence_penalty"].tolist() == [0.0, 0.5]
    assert params.rows["frequency_penalty"].tolist() == [0.0, 0.25]
    assert params.rows["logprobs"].tolist() == [-1, 3]
    assert params.rows["edit_row"].tolist() == [-1, 5]
    assert params.output_positions.tolist() == [1, 0]


def test_rows_of_prompts_come_behind_those_to_draw_from_with_the_tokens_that_follow():
    asking = sequence([5, 6, 7, 8, 9], [3, 4], prompt_logprobs=2)
    asking.prompt_logprobs, asking.num_computed, asking.num_reported = bytearray(), 1, 2
    chunks = [Chunk(sequence([1, 2], [0]), 2, True), Chunk(asking, 3, False), Chunk(sequence([3], [1]), 1, True)]
    assert build_step(chunks, 4).logit_rows.tolist() == [1, 5, 3, 4]
    assert prompt_tokens(chunks) == [PromptTokens([], 0), PromptTokens([8, 9], 2), PromptTokens([], 0)]
    rows = build_report_params(prompt_tokens(chunks)).rows
    assert (rows["logprobs"].tolist(), rows["edit_row"].tolist()) == ([2, 2], [-1, -1])


def test_a_row_tells_how_many_biases_there_are_and_how_many_ids_are_banned_at_first():
    biased = sequence([1], [0], logit_bias={3: 1.0, 4: -1.0}, stop_token_ids=(7, 8, 9), min_tokens=2)
    ending = sequence([1], [1], stop_token_ids=(7, 8, 9))
    rows = build_sampling_params([biased, ending], lambda each: 0 if each.is_edited else -1).rows
    assert rows["num_biases"].tolist() == [2, 0]
    assert rows["num_banned"].tolist() == [3, 0]
    assert rows["min_tokens"].tolist() == [2, 0]


def test_the_same_sequence_has_the_same_row_but_for_where_its_edits_are():
    edited = sequence([1], [1], repetition_penalty=2.0, seed=9)
    rows = [np.frombuffer(build_sampling_row(edited, edit_row), SAMPLING_ROW)[0] for edit_row in (5, 6)]
    assert [row["edit_row"] for row in rows] == [5, 6]
    assert all(rows[0][name] == rows[1][name] for name in SAMPLING_ROW.names if name != "edit_row")


def test_a_row_holds_every_parameter_that_acts_when_a_token_is_drawn():
    drawing = [parameter.name for parameter in PARAMETERS.values() if parameter.where == "draw"]
    assert set(drawing) < set(SAMPLING_ROW.names)
    kinds = {name: {"f": float, "i": int}[SAMPLING_ROW[name].kind] for name in drawing}
    assert kinds == {name: type(getattr(SamplingFields(), name)) for name in drawing}


def test_the_key_of_a_choice_wraps_around_at_64_bits():
    assert draw_key(sequence([1], [0], seed=2**64 - 1, choice=3)) == 2


def test_groups_of_equal_beginnings_name_the_rows_of_their_members():
    sequences = [sequence([1], [number]) for number in range(5)]
    groups = [PrefixGroup(tuple(sequences[:2]), 512), PrefixGroup(tuple(sequences[2:]), 256)]
    rows = dict(zip(sequences, [4, 9, 0, 1, 6], strict=True))
    prefixes = build_prefix_groups(groups, rows)
    assert prefixes is not None
    assert prefixes.groups.tolist() == [[0, 2, 512], [2, 3, 256]]
    assert prefixes.members.tolist() == [4, 9, 0, 1, 6]
    assert {prefixes.groups.dtype, prefixes.members.dtype} == {np.dtype(np.int32)}
    assert build_prefix_groups([], rows) is None


def test_a_step_says_where_states_are_read_and_written_if_its_sequences_have_any():
    beginning, going_on, after_a_snapshot = (sequence([1, 2, 3], [number]) for number in range(3))
    chunks = [Chunk(each, 2, False) for each in (beginning, going_on, after_a_snapshot)]
    assert build_step(chunks, 4).states is None
    beginning.state_slot = 4
    going_on.state_slot = going_on.state_source = 0
    after_a_snapshot.state_slot, after_a_snapshot.state_source = 3, 7
    states = build_step(chunks, 4).states
    assert (states.slots.tolist(), states.sources.tolist()) == ([4, 0, 3], [-1, 0, 7])
    assert states.slots.dtype == states.sources.dtype == np.int32
