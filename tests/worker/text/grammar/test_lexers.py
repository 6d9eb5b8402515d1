"""Answers of one grammar are spread over lexers, few of which learn all there is to know."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, allowed_ids, tokenizer_of
from worker.text.grammar import grammar_compiler
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.lexers import ANSWERS_PER_LEXER
from worker.text.grammar.token_matcher import TokenMatcher


@pytest.fixture(autouse=True)
def _time_for_all_lexers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_compiler, "LEXERS_S", math.inf)


def compiled(num_threads: int) -> TokenMatcher:
    compiler = GrammarCompiler(tokenizer_of(BYTE_LEVEL), num_threads=num_threads)
    return compiler.compile(grammar_text("json_schema", {"type": "array", "items": {"enum": ["ab", "cd"]}}))


def test_a_lexer_has_some_answers_before_the_next_one_has_any() -> None:
    beginning = compiled(num_threads=3)  # has a lexer itself
    answers: list[TokenMatcher] = []
    for number in range(1, 3 * ANSWERS_PER_LEXER):
        answers.append(beginning.copy())
        sizes = Counter(each.lexer for each in (beginning, *answers))
        assert len(sizes) == number // ANSWERS_PER_LEXER + 1
    answers += [beginning.copy() for _ in range(9)]
    assert {*Counter(each.lexer for each in (beginning, *answers)).values()} == {ANSWERS_PER_LEXER + 3}


def test_the_place_of_an_answer_that_is_gone_is_taken_by_the_next_one() -> None:
    beginning = compiled(num_threads=2)
    answers = [beginning.copy() for _ in range(ANSWERS_PER_LEXER + 3)]
    assert answers[-1].lexer is not beginning.lexer
    del answers[0]
    assert beginning.copy().lexer is beginning.lexer


def test_an_answer_that_has_begun_stays_with_its_lexer_when_it_is_copied() -> None:
    beginning = compiled(num_threads=2)
    others = [beginning.copy() for _ in range(ANSWERS_PER_LEXER)]
    num_tokens = tokenizer_of(BYTE_LEVEL).vocab_size
    first = others[0]
    first.take(allowed_ids(first, num_tokens)[0], 1000)
    copies = [first.copy() for _ in range(3)]
    assert {each.lexer for each in copies} == {first.lexer}
    assert [allowed_ids(each, num_tokens) for each in copies] == [allowed_ids(first, num_tokens)] * 3
    assert allowed_ids(beginning.copy(), num_tokens) != allowed_ids(first, num_tokens)


def test_one_lexer_takes_all_where_there_is_no_other() -> None:
    matcher = compiled(num_threads=1)
    assert {matcher.copy().lexer for _ in range(50)} == {matcher.lexer}
