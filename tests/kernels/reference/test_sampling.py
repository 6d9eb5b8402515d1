"""kernels.reference.sampling: generator vectors, distributions, filters, penalties, row independence."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import ArrayLike, DTypeLike

from kernels.batch import ANY_ID, GREEDY_ROW, IN_PROMPT, SAMPLING_ROW, LogitEdits, SamplingParams, encode_only_id
from kernels.logit_edits import MAX_COUNT, EditResetList, allocate_edits, count_tokens
from kernels.reference.sampling import (
    edit_logits,
    log_probabilities,
    mask_logits,
    philox4x32,
    reset_edits,
    sample,
    top_log_probabilities,
)


def draw(logits: np.ndarray, **params: ArrayLike) -> np.ndarray:
    num_rows = logits.shape[0]
    positions = np.broadcast_to(np.asarray(params.pop("output_positions", 0), np.int64), num_rows)
    rows = np.frombuffer(GREEDY_ROW * num_rows, SAMPLING_ROW).copy()
    rows["temperature"] = 1
    for name, values in params.items():
        rows[name] = values
    out_ids = np.empty(num_rows, np.int32)
    sample(logits.astype(np.float32), SamplingParams(rows, positions), out_ids=out_ids)
    return out_ids


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generator_gives_the_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    words = philox4x32(np.array(counter, np.uint32)[:, None], np.array(key, np.uint32)[:, None])
    assert tuple(words[:, 0]) == expected


def chi_square(ids: np.ndarray, expected: np.ndarray) -> float:
    counts = np.bincount(ids, minlength=expected.size)
    assert not counts[expected == 0].any()
    kept = expected > 0
    return float(((counts[kept] - expected[kept] * ids.size) ** 2 / (expected[kept] * ids.size)).sum())


@pytest.mark.parametrize("vary", ["key", "output_positions"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_over_seeds_and_over_positions(vary: str, temperature: float) -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5, -3.0, 1.5, 0.0])
    num_draws = 20_000
    ids = draw(np.tile(logits, (num_draws, 1)), temperature=temperature, **{vary: np.arange(num_draws)})
    weights = np.exp(logits / temperature)
    assert chi_square(ids, weights / weights.sum()) < 24.3  # 7 degrees of freedom: p = 0.001


def test_filters_keep_what_they_promise_and_the_rest_in_proportion() -> None:
    probabilities = np.array([0.05, 0.4, 0.02, 0.25, 0.13, 0.15])
    logits = np.tile(np.log(probabilities), (8000, 1))
    for params, kept in (
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.66}, [1, 3, 5]),
        ({"min_p": 0.35}, [1, 3, 5]),
        ({"top_k": 3, "top_p": 0.75}, [1, 3]),  # of the three's mass of 0.8, 0.65 is enough
        ({"top_k": 5, "top_p": 0.99, "min_p": 0.3}, [1, 3, 4, 5]),
        ({"top_p": 0.001}, [1]),
        ({"top_k": 100, "top_p": 1.0}, [0, 1, 2, 3, 4, 5]),
    ):
        expected = np.zeros(6)
        expected[kept] = probabilities[kept] / probabilities[kept].sum()
        ids = draw(logits, key=np.arange(8000) + 77, **params)
        assert chi_square(ids, expected) < 20.6, params  # at most 5 degrees of freedom: p = 0.001


def test_tokens_that_tie_with_the_last_one_kept_are_kept_too() -> None:
    ids = draw(np.tile([1.0, 3.0, 1.0, 0.0], (500, 1)), top_k=2, key=np.arange(500))
    assert set(ids) == {0, 1, 2}


def test_temperature_zero_takes_the_lowest_of_the_largest() -> None:
    logits = np.array([[0.0, 5.0, 5.0], [1.0, 0.0, -np.inf]])
    assert draw(logits, temperature=0, top_k=1, key=9).tolist() == [1, 0]


def test_a_row_without_finite_maximum_gives_no_token() -> None:
    bad = np.array([[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf], [1.0, -np.inf]])
    assert draw(bad).tolist() == [-1, -1, -1, 0]
    assert draw(bad, temperature=0).tolist() == [-1, -1, -1, 0]


def test_a_tiny_temperature_is_almost_greedy_and_never_overflows() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 300)) * 10
    assert (draw(logits, temperature=1e-30, key=np.arange(50)) == logits.astype(np.float32).argmax(axis=1)).all()


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(24, 997)).astype(np.float32) * 3
    params = {
        "temperature": rng.choice([0, 0.7, 1.0, 1.9], 24),
        "top_k": rng.choice([0, 1, 40, 2000], 24),
        "top_p": rng.choice([1.0, 0.5, 0.95], 24),
        "min_p": rng.choice([0.0, 0.1], 24),
        "key": rng.integers(0, 2**63, 24).astype(np.uint64) * np.uint64(2),
        "output_positions": rng.integers(0, 2**40, 24),
    }
    together = draw(logits, **params)
    alone = [
        int(draw(logits[i : i + 1], **{name: value[i : i + 1] for name, value in params.items()})[0]) for i in range(24)
    ]
    assert together.tolist() == alone


def test_noise_depends_on_every_bit_of_key_and_position() -> None:
    logits = np.zeros((1, 4096))
    drawn = {
        int(draw(logits, key=key, output_positions=position)[0])
        for key, position in ((0, 0), (1, 0), (1 << 63, 0), (0, 1), (0, 1 << 40))
    }
    assert len(drawn) == 5


def edits_of(num_rows: int, vocab_size: int) -> LogitEdits:
    """Rows full of what earlier sequences left there."""

    def garbage(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.full(num_bytes, 7, np.uint8).view(dtype).reshape(shape)

    memory = SimpleNamespace(allocate=garbage)
    return allocate_edits(memory, num_rows, vocab_size, max_biases=4)


def test_edits_apply_bias_then_bans_then_penalties() -> None:
    edits = edits_of(3, 4)
    resets = EditResetList()
    resets.put(2, count_tokens([0, 1], [0, 0, 3]), {0: 1.0, 3: 5.0}, (3,))
    resets.put(0, count_tokens([], [2, 2, 2]), {2: -1.5}, ())
    reset_edits(edits, resets.arrays())
    rows = np.frombuffer(GREEDY_ROW * 3, SAMPLING_ROW).copy()
    for name, values in {
        "edit_row": [2, 0, -1],
        "num_biases": [2, 1, 0],
        "num_banned": [1, 0, 0],
        "min_tokens": [4, 0, 0],
        "repetition_penalty": [2.0, 1.0, 9.0],
        "presence_penalty": [0.25, 0.5, 9.0],
        "frequency_penalty": [0.1, 0.0, 9.0],
    }.items():
        rows[name] = values
    logits = np.array([[1.0, -1.0, 2.0, 0.5]] * 3, np.float32)
    params = SamplingParams(rows, np.array([3, 0, 0]), edits)
    edit_logits(logits, params)
    expected = [[2 / 2 - 0.25 - 0.2, -2.0, 2.0, -np.inf], [1.0, -1.0, 0.0, 0.5], [1.0, -1.0, 2.0, 0.5]]
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    again = np.array([[1.0, -1.0, 2.0, 0.5]] * 3, np.float32)
    edit_logits(again, SamplingParams(rows, np.array([4, 0, 0]), edits))
    assert np.isfinite(again[0, 3]), "there are as many tokens as min_tokens wants"


def test_an_infinite_bias_bans_a_token_whatever_else_edits_its_logit() -> None:
    edits = edits_of(1, 4)
    resets = EditResetList()
    resets.put(0, count_tokens([0, 1, 2], [0, 1]), {0: -np.inf, 1: -np.inf, 2: -np.inf}, (2,))
    reset_edits(edits, resets.arrays())
    rows = np.frombuffer(GREEDY_ROW, SAMPLING_ROW).copy()
    rows["edit_row"], rows["num_biases"], rows["num_banned"], rows["min_tokens"] = 0, 3, 1, 4
    rows["repetition_penalty"], rows["presence_penalty"], rows["frequency_penalty"] = 0.01, -2.0, -2.0
    logits = np.array([[9.0, -np.inf, 9.0, -9.0]], np.float32)
    out_ids = np.empty(1, np.int32)
    sample(logits, SamplingParams(rows, np.array([2]), edits), out_ids=out_ids)
    assert (out_ids.tolist(), logits.tolist()) == ([3], [[-np.inf, -np.inf, -np.inf, -9.0]])


def test_what_is_drawn_counts_for_the_next_draw() -> None:
    edits = edits_of(1, 3)
    resets = EditResetList()
    resets.put(0, count_tokens([2], []), {}, ())
    reset_edits(edits, resets.arrays())
    rows = np.frombuffer(GREEDY_ROW, SAMPLING_ROW).copy()
    rows["edit_row"], rows["frequency_penalty"] = 0, 0.5
    out_ids, drawn = np.empty(1, np.int32), []
    for position in range(6):
        params = SamplingParams(rows, np.array([position]), edits)
        sample(np.array([[1.2, 1.0, 0.3]], np.float32), params, out_ids=out_ids)
        drawn.append(out_ids.item())
    assert drawn == [0, 1, 0, 1, 2, 0]
    assert edits.counts[0, :3].tolist() == [3, 2, IN_PROMPT + 1]


def test_counts_end_where_their_bits_do_and_nothing_is_counted_that_was_not_drawn() -> None:
    edits = edits_of(1, 3)
    resets = EditResetList()
    resets.put(0, count_tokens([1], [1] * (MAX_COUNT - 1)), {}, ())
    reset_edits(edits, resets.arrays())
    rows = np.frombuffer(GREEDY_ROW, SAMPLING_ROW).copy()
    rows["edit_row"] = 0
    params, out_ids = SamplingParams(rows, np.zeros(1, np.int64), edits), np.empty(1, np.int32)
    for _ in range(3):
        sample(np.array([[0.0, 1.0, 0.0]], np.float32), params, out_ids=out_ids)
    sample(np.full((1, 3), np.nan, np.float32), params, out_ids=out_ids)
    assert edits.counts[0, :3].tolist() == [0, IN_PROMPT + MAX_COUNT, 0]


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, 997])
def test_a_mask_leaves_the_logits_of_its_ones_and_all_of_other_rows(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(size=(5, vocab_size)).astype(np.float32)
    logits[3, rng.integers(vocab_size)] = np.nan
    allowed = {3: set(), 0: set(range(vocab_size)), 1: set(np.flatnonzero(rng.random(vocab_size) < 0.3).tolist())}
    masks = np.full((len(allowed), -(-vocab_size // 32)), 0, np.uint32)
    for mask, ids in zip(masks, allowed.values(), strict=True):
        for token_id in ids:
            mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    masks[0, -1] |= np.uint32((0xFFFFFFFF << (vocab_size - 1) % 32 + 1) & 0xFFFFFFFF)  # of no token
    out = np.empty_like(logits)
    numbers = np.array([1, 2, ANY_ID, 0, encode_only_id(vocab_size // 2)], np.int32)
    allowed[4] = {vocab_size // 2}
    mask_logits(logits, numbers, masks, out=out)
    for row in range(5):
        ids = allowed.get(row, set(range(vocab_size)))
        expected = [value if token_id in ids else -np.inf for token_id, value in enumerate(logits[row].tolist())]
        np.testing.assert_array_equal(out[row], np.array(expected, np.float32))
    mask_logits(logits, numbers, masks, out=logits)
    np.testing.assert_array_equal(logits, out)


def test_no_masks_change_nothing() -> None:
    logits = np.ones((2, 40), np.float32)
    mask_logits(logits, np.full(2, ANY_ID, np.int32), np.empty((0, 2), np.uint32), out=logits)
    assert (logits == 1).all()


def test_an_id_that_there_is_not_leaves_nothing() -> None:
    logits = np.ones((2, 40), np.float32)
    numbers = np.array([ANY_ID, encode_only_id((1 << 31) - 2)], np.int32)
    mask_logits(logits, numbers, np.empty((0, 2), np.uint32), out=logits)
    assert (logits[0] == 1).all() and (logits[1] == -np.inf).all()


def test_log_probabilities_are_a_log_softmax() -> None:
    logits = np.array([[1.0, 2.0, -np.inf, 100.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    out = np.empty_like(logits)
    log_probabilities(logits, out=out)
    np.testing.assert_allclose(np.exp(out).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(out[1], np.log(0.25), rtol=1e-6)
    assert out[0, 2] == -np.inf


def asking(*logprobs: int) -> SamplingParams:
    """Rows that ask for so many alternatives; -1: for nothing."""
    rows = np.frombuffer(GREEDY_ROW * len(logprobs), SAMPLING_ROW).copy()
    rows["logprobs"] = logprobs
    return SamplingParams(rows, np.zeros(len(logprobs), np.int64))


def test_a_row_reports_as_many_tokens_as_it_asks_for() -> None:
    logits = np.array([[1.0, 3.0, 2.0, 0.0]] * 4, np.float32)
    top_ids, top_logprobs = np.empty((4, 2), np.int32), np.empty((4, 2), np.float32)
    logprobs = np.empty(4, np.float32)
    out = {"out_logprobs": logprobs, "out_top_ids": top_ids, "out_top_logprobs": top_logprobs}
    top_log_probabilities(logits, np.ones(4, np.int32), asking(-1, 0, 1, 20), **out)
    np.testing.assert_array_equal(top_ids, [[-1, -1], [-1, -1], [1, -1], [1, 2]])
    assert np.isfinite(logprobs).tolist() == [False, True, True, True]
    np.testing.assert_array_equal(np.isfinite(top_logprobs), top_ids >= 0)


def test_the_most_probable_tokens_come_in_order_and_end_where_the_vocabulary_does() -> None:
    logits = np.array([[1.0, 3.0, -np.inf, 3.0], [0.0, 0.0, 0.0, 0.0], [9.0, 8.0, 7.0, 6.0]], np.float32)
    logprobs, top_logprobs = np.empty(3, np.float32), np.empty((3, 5), np.float32)
    top_ids = np.empty((3, 5), np.int32)
    out = {"out_logprobs": logprobs, "out_top_ids": top_ids, "out_top_logprobs": top_logprobs}
    top_log_probabilities(logits, np.array([0, 3, -1], np.int32), asking(5, 5, 5), **out)
    np.testing.assert_array_equal(top_ids, [[1, 3, 0, 2, -1], [0, 1, 2, 3, -1], [-1] * 5])
    expected = np.empty_like(logits)
    log_probabilities(logits, out=expected)
    np.testing.assert_allclose(logprobs, [expected[0, 0], expected[1, 3], -np.inf], rtol=1e-6)
    np.testing.assert_allclose(top_logprobs[:2, :4], [expected[0, [1, 3, 0, 2]], expected[1]], rtol=1e-6)
    assert (top_logprobs[:, 4] == -np.inf).all() and (top_logprobs[2] == -np.inf).all()
