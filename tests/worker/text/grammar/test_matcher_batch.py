"""Many grammars at once say what each says alone."""

from __future__ import annotations

import random
from functools import cache
from threading import Event

import numpy as np
import pytest

from orcd.errors import OrcdError
from tests.bench.structured_rates import SCHEMA
from tests.worker.text.grammar.compilers import BYTE_LEVEL, tokenizer_of, words_of
from tests.worker.text.grammar.schemas import make_schemas
from worker.engine.token_constraint import Asked, Drawn, TokenMask
from worker.text.grammar import grammar_compiler
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.matcher_batch import LEAST_TAKEN, LONG_S, MAX_THREADS, LateMask, MatcherBatch, num_threads
from worker.text.grammar.token_matcher import TokenMatcher

NUM_WORDS = -(-tokenizer_of(BYTE_LEVEL).vocab_size // 32)


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tokenizer_of(BYTE_LEVEL), num_threads=3)


def matchers(num_answers: int) -> list[TokenMatcher]:
    """Answers of two grammars, one after the other."""
    grammars = [compiler().compile(grammar_text("json_schema", schema)) for schema in (SCHEMA, make_schemas(7, 1)[0])]
    return [grammars[number % 2].copy() for number in range(num_answers)]


def masks_of(asked: list[Asked]) -> list[np.ndarray]:
    return [words_of(mask, NUM_WORDS) for mask in asked[0][0].batch.masks(asked)]


def mask_of(matcher: TokenMatcher, num_left: int) -> np.ndarray:
    mask = np.zeros(NUM_WORDS, np.uint32)
    matcher.write_mask(mask.data, num_left)
    return mask


def drawn_of(mask: np.ndarray, chance: random.Random) -> int:
    return int(chance.choice(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))))


def take_in_parts(drawn: list[Drawn]) -> list[int | Exception]:
    """Those first of which all is known in a moment, and the others one by one, as a step does that waits for none."""
    batch = drawn[0][0].batch
    taken = batch.take_known(drawn)
    for number, (matcher, _, num_left) in enumerate(drawn):
        if taken[number] is None:
            for waits in (False, True):
                if taken[number] is None:
                    taken[number] = batch.take_unknown(drawn[number], waits=waits)
        assert matcher.is_complete or matcher.known_mask(num_left - 1) is not None
    return taken


@pytest.mark.parametrize(("in_parts", "long_s"), [(False, 1), (True, 1), (True, 0)])
@pytest.mark.parametrize("num_answers", [1, LEAST_TAKEN - 1, 2 * LEAST_TAKEN])
def test_masks_and_tokens_of_many_are_those_of_each_alone(
    num_answers: int, in_parts: bool, long_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.text.grammar.matcher_batch.LONG_S", long_s)
    together, alone, chance = matchers(num_answers), matchers(num_answers), random.Random(num_answers)
    left = [135 + 3 * number for number in range(num_answers)]  # some can be closed in time only at once
    num_replaced = 0
    while together:
        masks = masks_of(list(zip(together, left, strict=True)))
        for each, num_left, mask in zip(alone, left, masks, strict=True):
            np.testing.assert_array_equal(mask_of(each, num_left), mask)
        ids = [drawn_of(mask, chance) for mask in masks]
        drawn = list(zip(together, ids, left, strict=True))
        taken = take_in_parts(drawn) if in_parts else together[0].batch.take(drawn)
        assert taken == [each.take(*draw) for each, draw in zip(alone, zip(ids, left, strict=True), strict=True)]
        num_replaced += sum(a != b for a, b in zip(ids, taken, strict=True))
        going = [number for number, each in enumerate(together) if not each.is_complete]
        together, alone = [together[each] for each in going], [alone[each] for each in going]
        left = [left[each] - 1 for each in going]
        assert min(left, default=1) > 0
    assert num_replaced or num_answers < LEAST_TAKEN


def test_what_is_not_known_in_a_moment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_compiler, "EARLY_S", 0.0)
    first, again = (matchers(1)[0] for _ in range(2))
    token_id = drawn_of(mask_of(again, 500), random.Random(1))
    assert first.batch.take_known([(first, token_id, 500)]) == [None], "nobody has been there"
    np.testing.assert_array_equal(mask_of(first, 500), mask_of(again, 500))
    assert first.batch.take_unknown((first, token_id, 500), waits=False) == token_id
    assert first.copy().batch.take_known([(again, token_id, 500)]) == [None], "another grammar, as it was compiled anew"


def test_a_mask_is_not_waited_for_where_the_last_one_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, may_compute = matchers(2)[1], Event()
    drawn = answer, drawn_of(mask_of(answer, 500), random.Random(1)), 500
    compute = LateMask.compute
    monkeypatch.setattr(LateMask, "compute", lambda mask: may_compute.wait(60) and compute(mask))
    answer.mask_s = 2 * LONG_S
    for _ in range(3):
        assert answer.batch.take_unknown(drawn, waits=False) is None
    may_compute.set()
    assert answer.batch.take_unknown(drawn, waits=True) == drawn[1]
    assert isinstance(answer.known_mask(499), TokenMask) and answer.mask_s < 60


@pytest.mark.parametrize("is_late", [False, True])
def test_a_token_that_is_not_allowed_is_an_error_of_its_answer_alone(is_late: bool) -> None:
    answers = matchers(2 * LEAST_TAKEN)
    masks = masks_of([(each, 500) for each in answers])
    ids = [drawn_of(mask, random.Random(0)) for mask in masks]
    wrong = next(each for each in range(100) if not masks[3][each // 32] >> each % 32 & 1)
    if is_late:
        answers[3]._behind.append(wrong)
    else:
        ids[3] = wrong
    taken = answers[0].batch.take([(each, token_id, 500) for each, token_id in zip(answers, ids, strict=True)])
    assert isinstance(taken[3], OrcdError)
    assert taken[:3] + taken[4:] == ids[:3] + ids[4:]
    masks = answers[0].batch.masks([(each, 499) for each in answers])
    assert [number for number, mask in enumerate(masks) if isinstance(mask, Exception)] == [3]


@pytest.mark.parametrize("num_answers", [LEAST_TAKEN - 2, 2 * LEAST_TAKEN])
def test_an_answer_that_fails_where_its_place_is_looked_for_ends_alone(
    num_answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = matchers(num_answers)
    masks = masks_of([(each, 500) for each in answers])
    ids = [drawn_of(mask, random.Random(0)) for mask in masks]
    goes_on = TokenMatcher.goes_on

    def go_on(matcher: TokenMatcher, *asked: int) -> bool:
        if matcher is answers[2]:
            raise ValueError("secret")
        return goes_on(matcher, *asked)

    monkeypatch.setattr(TokenMatcher, "goes_on", go_on)
    taken = answers[0].batch.take([(each, token_id, 500) for each, token_id in zip(answers, ids, strict=True)])
    assert isinstance(taken[2], ValueError)
    assert taken[:2] + taken[3:] == ids[:2] + ids[3:]


def test_a_mask_is_computed_once_for_all_that_are_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_compiler, "EARLY_S", 0.0)
    answers, num_computed = matchers(20), []
    compute = MatcherBatch._compute
    monkeypatch.setattr(MatcherBatch, "_compute", lambda *given: num_computed.append(len(given[2])) or compute(*given))
    answers = [each for each in answers if each.place is not None]
    for each in answers:
        each.take(each.forced_id(500), 500)
    first, *_, last = answers[0].batch.masks([(each, 499) for each in answers])
    assert first is last
    assert sum(num_computed) == len({each.place for each in answers}) < len(answers)


def test_some_cores_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {}
    for cores in (1, 2, 4, 16, 200):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: range(cores))
        numbers[cores] = num_threads()
    assert numbers == {1: 1, 2: 1, 4: 3, 16: 12, 200: MAX_THREADS}
