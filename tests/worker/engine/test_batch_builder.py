import numpy as np
import pytest

from tests.worker.engine.context_model import check_shapes
from tests.worker.engine.generation import sequence
from worker.engine.batch_builder import build_draws, build_step, draw_key
from worker.engine.scheduler import Chunk


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
    unread.launch(3, draws=True)
    step = build_step([Chunk(unread, 1, True)], block_tokens=4, draw_of=lambda _sequence: 6)
    assert step.token_ids.tolist() == [-7]
    assert step.positions.tolist() == [3]
    with pytest.raises(AssertionError):
        build_step([Chunk(unread, 1, True)], block_tokens=4)


def test_draws_are_the_options_of_each_sequence_and_its_place_in_the_output():
    first = sequence([1, 2, 3], [0], num_prompt=2, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, seed=40, choice=2)
    draws = build_draws([first, sequence([1], [1])])
    assert draws.temperature.tolist() == [0.5, 0.0]
    assert draws.top_k.tolist() == [7, 0]
    np.testing.assert_allclose(draws.top_p, [0.9, 1.0])
    np.testing.assert_allclose(draws.min_p, [0.1, 0.0])
    assert draws.keys.tolist() == [42, 0]
    assert draws.output_positions.tolist() == [1, 0]


def test_the_key_of_a_choice_wraps_around_at_64_bits():
    assert draw_key(sequence([1], [0], seed=2**64 - 1, choice=3)) == 2
