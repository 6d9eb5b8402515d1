"""kernels.reference.sampling: generator vectors, distributions, filters, penalties, row independence."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from kernels.batch import SAMPLING_ROW, Adjustments, SamplingParams
from kernels.reference.sampling import (
    adjust_logits,
    log_probabilities,
    mask_logits,
    philox4x32,
    sample,
    top_log_probabilities,
)


def draw(logits: np.ndarray, **params: ArrayLike) -> np.ndarray:
    num_rows = logits.shape[0]
    positions = np.broadcast_to(np.asarray(params.pop("output_positions", 0), np.int64), num_rows)
    rows = np.zeros(num_rows, SAMPLING_ROW)
    rows["temperature"] = rows["top_p"] = 1
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


def test_adjustments_apply_bias_then_penalties_then_bans() -> None:
    logits = np.array([[1.0, -1.0, 2.0, 0.5], [1.0, -1.0, 2.0, 0.5]], np.float32)
    entries = [  # row, id, bias, seen, count, banned
        (0, 0, 1.0, True, 2, False),
        (0, 1, 0.0, True, 0, False),
        (0, 3, 5.0, True, 1, True),
        (1, 2, -1.5, False, 3, False),
    ]
    rows, ids, bias, seen, counts, banned = zip(*entries, strict=True)
    adjustments = Adjustments(
        np.array(rows, np.int32),
        np.array(ids, np.int32),
        np.array(bias, np.float32),
        np.array(seen),
        np.array(counts, np.int32),
        np.array(banned),
        repetition_penalty=np.array([2.0, 9.0], np.float32),
        presence_penalty=np.array([0.25, 0.5], np.float32),
        frequency_penalty=np.array([0.1, 0.0], np.float32),
    )
    out = np.empty_like(logits)
    adjust_logits(logits, adjustments, out=out)
    expected = [[2 / 2 - 0.25 - 0.2, -2.0, 2.0, -np.inf], [1.0, -1.0, 0.0, 0.5]]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    adjust_logits(logits, adjustments, out=logits)
    np.testing.assert_array_equal(logits, out)


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
    mask_logits(logits, np.array(list(allowed), np.int32), masks, out=out)
    for row in range(5):
        ids = allowed.get(row, set(range(vocab_size)))
        expected = [value if token_id in ids else -np.inf for token_id, value in enumerate(logits[row].tolist())]
        np.testing.assert_array_equal(out[row], np.array(expected, np.float32))
    mask_logits(logits, np.array(list(allowed), np.int32), masks, out=logits)
    np.testing.assert_array_equal(logits, out)


def test_no_masks_change_nothing() -> None:
    logits = np.ones((2, 40), np.float32)
    mask_logits(logits, np.empty(0, np.int32), np.empty((0, 2), np.uint32), out=logits)
    assert (logits == 1).all()


def test_log_probabilities_are_a_log_softmax() -> None:
    logits = np.array([[1.0, 2.0, -np.inf, 100.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    out = np.empty_like(logits)
    log_probabilities(logits, out=out)
    np.testing.assert_allclose(np.exp(out).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(out[1], np.log(0.25), rtol=1e-6)
    assert out[0, 2] == -np.inf


def test_the_most_probable_tokens_come_in_order_and_end_where_the_vocabulary_does() -> None:
    logits = np.array([[1.0, 3.0, -np.inf, 3.0], [0.0, 0.0, 0.0, 0.0], [9.0, 8.0, 7.0, 6.0]], np.float32)
    logprobs, top_logprobs = np.empty(3, np.float32), np.empty((3, 5), np.float32)
    top_ids = np.empty((3, 5), np.int32)
    drawn = np.array([0, 3, -1], np.int32)
    top_log_probabilities(logits, drawn, 5, out_logprobs=logprobs, out_top_ids=top_ids, out_top_logprobs=top_logprobs)
    np.testing.assert_array_equal(top_ids, [[1, 3, 0, 2, -1], [0, 1, 2, 3, -1], [-1] * 5])
    expected = np.empty_like(logits)
    log_probabilities(logits, out=expected)
    np.testing.assert_allclose(logprobs, [expected[0, 0], expected[1, 3], -np.inf], rtol=1e-6)
    np.testing.assert_allclose(top_logprobs[:2, :4], [expected[0, [1, 3, 0, 2]], expected[1]], rtol=1e-6)
    assert (top_logprobs[:, 4] == -np.inf).all() and (top_logprobs[2] == -np.inf).all()
