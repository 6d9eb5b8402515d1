from tests.worker.engine.generation import sequence
from worker.engine.logits.penalties import build_adjustments


def test_a_sequence_without_wishes_has_no_entry():
    adjustments = build_adjustments([sequence([1, 2], [0])])
    assert adjustments.rows.size == 0
    assert adjustments.repetition_penalty.tolist() == [1.0]


def test_every_id_that_is_touched_has_one_entry_in_order_of_rows_and_ids():
    biased = sequence([4, 4], [0], logit_bias={9: 1.5, 2: -1.0})
    penalised = sequence([5, 3, 3], [1], num_prompt=1, repetition_penalty=1.5, frequency_penalty=0.5)
    held_open = sequence([1], [2], stop_token_ids=(8,), min_tokens=1)
    adjustments = build_adjustments([biased, penalised, held_open])
    assert adjustments.rows.tolist() == [0, 0, 1, 1, 2]
    assert adjustments.token_ids.tolist() == [2, 9, 3, 5, 8]
    assert adjustments.bias.tolist() == [-1.0, 1.5, 0.0, 0.0, 0.0]
    assert adjustments.seen.tolist() == [False, False, True, True, False]
    assert adjustments.output_counts.tolist() == [0, 0, 2, 0, 0]
    assert adjustments.banned.tolist() == [False, False, False, False, True]
    assert adjustments.frequency_penalty.tolist() == [0.0, 0.5, 0.0]


def test_a_stop_id_may_be_drawn_once_there_are_tokens_enough():
    assert build_adjustments([sequence([1, 2], [0], num_prompt=1, stop_token_ids=(8,), min_tokens=1)]).rows.size == 0
