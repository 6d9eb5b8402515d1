import math
from typing import get_type_hints

import pytest

from kernels.batch import IN_PROMPT
from kernels.logit_edits import SHORT_PROMPT, TOKEN_BIAS, TOKEN_COUNT
from orcd.sampling import SamplingFields
from tests.worker.engine.generation import sequence
from worker.engine.logits.edit_rows import MAX_BIASES, EditRows, max_reset_entries


def test_only_sequences_whose_logits_are_edited_have_a_row():
    rows = EditRows(2, 32)
    plain, edited = sequence([1], [0], temperature=1.0), sequence([1], [1], presence_penalty=0.5)
    rows.assign([plain, edited])
    assert rows.row_of(plain) == -1
    assert rows.row_of(edited) in (0, 1)


def test_a_row_begins_with_the_tokens_that_there_are_and_with_biases_before_banned_ids():
    rows = EditRows(1, 32)
    only = sequence(
        [4, 4, 9, 4], [0], num_prompt=2, repetition_penalty=2.0, logit_bias={3: 1.5}, stop_token_ids=(7,), min_tokens=5
    )
    rows.assign([only])
    [resets] = rows.take_resets()
    arrays = resets.arrays()
    assert arrays.resets.tolist() == [(0, 0, 2, 0, 2)]
    assert arrays.counts.tolist() == [(4, IN_PROMPT + 1), (9, 1)]
    assert arrays.biases.tolist() == [(3, 1.5), (7, 0.0)]
    assert rows.take_resets() == []


def test_a_bad_word_of_one_token_is_a_bias_whatever_the_request_says_of_the_token_besides():
    rows = EditRows(1, 32)
    words = ((3,), (3,), (5,), (6, 8))
    rows.assign([sequence([4], [0], logit_bias={3: 100.0, 2: 1.0}, bad_words=words)])
    [resets] = rows.take_resets()
    assert resets.arrays().biases.tolist() == [(3, -math.inf), (2, 1.0), (5, -math.inf)]
    assert resets.arrays().resets["num_biases"].tolist() == [3]


def test_without_penalties_no_tokens_are_sent():
    rows = EditRows(1, 32)
    rows.assign([sequence([4, 5], [0], logit_bias={3: 1.5})])
    [resets] = rows.take_resets()
    assert resets.arrays().counts.size == 0


def test_a_row_is_begun_once_and_again_when_what_was_sent_no_longer_holds():
    rows = EditRows(2, 32)
    only = sequence([4, 5], [0], repetition_penalty=2.0)
    rows.assign([only])
    rows.assign([only])
    assert len(rows.take_resets()[0].resets) == 1
    before = rows.row_of(only)
    only.revision += 1
    rows.assign([only])
    assert len(rows.take_resets()[0].resets) == 1
    assert rows.row_of(only) == before


def test_rows_of_those_that_ended_or_gave_way_go_to_the_next():
    rows = EditRows(3, 32)
    ended, preempted, running, new = (sequence([4], [n], repetition_penalty=2.0) for n in range(4))
    rows.assign([ended, preempted, running])
    freed = {rows.row_of(ended), rows.row_of(preempted)}
    ended.finish_reason = "stop"
    preempted.drop_blocks()
    rows.assign([new])
    assert rows.row_of(new) in freed
    preempted.block_ids = [5]
    rows.assign([preempted])
    assert {rows.row_of(new), rows.row_of(preempted)} == freed
    assert rows.row_of(running) not in freed


def test_the_row_of_a_sequence_whose_last_token_is_being_drawn_goes_to_the_next():
    rows = EditRows(2, 32)
    ending, running, new = (sequence([4], [n], repetition_penalty=2.0) for n in range(3))
    ending.most_tokens = 2
    rows.assign([ending, running])
    freed = rows.row_of(ending)
    for each in (ending, running):
        each.launch(1, True)
    rows.assign([new])
    assert rows.row_of(new) == freed


def test_a_token_that_only_the_device_knows_cannot_be_counted_here():
    only = sequence([4], [0], repetition_penalty=2.0)
    only.launch(1, True)
    with pytest.raises(AssertionError, match="only the device knows"):
        EditRows(1, 32).assign([only])


def test_resets_go_in_as_many_lists_as_fit_the_device():
    rows = EditRows(9, 1024)
    most = max_reset_entries(1024)
    assert most == SHORT_PROMPT + MAX_BIASES
    for number in range(9):
        biases = dict.fromkeys(range(1024), 1.0)
        rows.assign([sequence(list(range(1000)), [number], logit_bias=biases, repetition_penalty=2.0)])
    numbers = [resets.num_entries for resets in rows.take_resets()]
    assert numbers == [4 * 2024, 4 * 2024, 2024]
    assert 4 * 2024 <= most < 5 * 2024


def test_every_request_that_the_table_of_parameters_allows_fits_a_row():
    most = {field: _max_length(field) for field in ("logit_bias", "stop_token_ids", "bad_words")}
    assert sum(most.values()) + most["bad_words"] <= MAX_BIASES, "each word has two spellings"
    assert TOKEN_BIAS.itemsize == TOKEN_COUNT.itemsize


def _max_length(field: str) -> int:
    [limits] = get_type_hints(SamplingFields, include_extras=True)[field].__metadata__
    return limits.max_length
