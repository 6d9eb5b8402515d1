"""What is found out with a grammar is what answers would have found out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.bench.structured_rates import SCHEMA
from tests.worker.text.grammar.compilers import BYTE_LEVEL, compiler_of, tokenizer_of, words_of
from worker.text.grammar import grammar_compiler
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.places.place import Place
from worker.text.grammar.token_matcher import TokenMatcher

NOTE = {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"]}


@pytest.fixture(autouse=True)
def enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine does: the tests are of what is computed, and one of that time may be up."""
    monkeypatch.setattr(grammar_compiler, "EARLY_S", 60.0)


def compiled(schema: Any, num_threads: int = 2) -> TokenMatcher:
    compiler = GrammarCompiler(tokenizer_of(BYTE_LEVEL), num_threads=num_threads)
    return compiler.compile(grammar_text("json_schema", schema))


def known_places(matcher: TokenMatcher) -> dict[tuple[bytes, int], Place]:
    """Those in strings whose masks are known."""
    assert matcher.places is not None
    strings = matcher.places._lengths.items()
    return {
        (outline, length): place
        for outline, lengths in strings
        for length, place in lengths.items()
        if place.known_mask() is not None
    }


def test_of_each_string_that_a_short_document_may_have_all_masks_are_known() -> None:
    known = known_places(compiled(SCHEMA))
    outlines = {outline.rpartition(b",")[2]: outline for outline, _ in known}
    assert set(outlines) == {b'"customer":', b'"comment":'}
    for name, most in ((b'"customer":', 40), (b'"comment":', 80)):
        lengths = sorted(length for outline, length in known if outline == outlines[name])
        assert lengths == list(range(most))


ORDER = '{ "order_number":7,\n"customer" : "","status":"open" ,"price":0,"comment":""}'


@pytest.mark.parametrize("num_orders", [2, 3, 6])
def test_of_documents_with_few_or_many_values_most_places_are_known(num_orders: int) -> None:
    matcher, num_words = compiled(SCHEMA), -(-tokenizer_of(BYTE_LEVEL).vocab_size // 32)
    answer, alone, num_known = matcher.copy(), compiled(SCHEMA, num_threads=1).copy(), 0
    text = f"[{','.join([ORDER] * num_orders)}  ]".encode()
    for byte in text:
        token_id = matcher._rule.alphabet.of_byte(byte)
        masks = [answer.batch.masks([(each, 900)])[0] for each in (answer, alone)]
        np.testing.assert_array_equal(*[words_of(mask, num_words) for mask in masks])
        if answer.goes_on(token_id, 900):
            num_known += 1
        else:
            answer.take(token_id, 900)
        alone.take(token_id, 900)
    assert answer.is_complete
    assert num_known > 0.75 * len(text)


@pytest.mark.parametrize("schema", [NOTE, {"type": "array"}, {"type": "object"}])
def test_where_documents_may_be_of_any_length_only_some_are_looked_at(schema: Any) -> None:
    places = compiled(schema).places
    assert places is not None and len(places._kept) < 1000


def test_they_are_those_that_llguidance_computes_for_an_answer() -> None:
    early, alone = (
        compiled(SCHEMA["items"]),
        compiler_of(BYTE_LEVEL).compile(grammar_text("json_schema", SCHEMA["items"])),
    )
    texts = {
        length: place for (outline, length), place in known_places(early).items() if outline.endswith(b'"customer":')
    }
    answer, words = alone.copy(), np.zeros(early.batch.num_words, np.uint32)
    for byte in b'{"order_number":7,"customer":"':
        answer.take(alone._rule.alphabet.of_byte(byte), 900)
    for length in range(40):
        words[:] = 0
        answer.write_mask(words.data, 900)
        assert texts[length].known_mask().words == words.tobytes(), length
        answer.take(alone._rule.alphabet.of_byte(ord("k")), 900)


def test_of_a_string_without_a_bound_one_is_enough() -> None:
    assert len({place.known_mask() for place in known_places(compiled(NOTE)).values()}) == 1


def test_where_nobody_shares_the_work_and_when_time_is_up_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not known_places(compiled(SCHEMA, num_threads=1))
    monkeypatch.setattr(grammar_compiler, "EARLY_S", 0.0)
    assert not known_places(compiled(SCHEMA))


def test_they_count_once_answers_are_there() -> None:
    matcher = compiled(SCHEMA)
    places = matcher.places
    assert places._memory._num_bytes == 0, "that is counted by another thread than the one that compiles"
    answer = matcher.copy()
    for byte in b'[{"order_number":7':
        answer.take(matcher._rule.alphabet.of_byte(byte), 900)
    masks = {place.known_mask() for place in known_places(matcher).values()}
    assert places._memory._num_bytes > sum(len(mask.words) for mask in masks) > 0


def test_those_of_a_grammar_that_nobody_uses_count_with_what_others_learn() -> None:
    compiler = GrammarCompiler(tokenizer_of(BYTE_LEVEL), num_threads=2)
    unused, used = (compiler.compile(grammar_text("json_schema", schema)) for schema in (SCHEMA, NOTE))
    memory = used.places._memory
    assert memory is unused.places._memory
    matcher = used.copy()
    for byte in b'{ "note": "x" }':
        matcher.take(matcher._rule.alphabet.of_byte(byte), 900)
    masks = {place.known_mask() for place in known_places(unused).values()}
    assert memory._num_bytes > sum(len(mask.words) for mask in masks) > 0
