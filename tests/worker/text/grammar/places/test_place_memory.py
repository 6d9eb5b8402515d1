"""What is kept of the places of all grammars has a bound."""

from __future__ import annotations

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, tokenizer_of
from tests.worker.text.grammar.places.test_document_places import TEXT, matcher_behind, matcher_of, place_of, record
from worker.text.grammar import token_matcher
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.places import document_places, place_memory


def test_of_all_grammars_those_that_learned_last_keep_what_they_know(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(tokenizer_of(BYTE_LEVEL))
    beginnings = [compiler.compile(grammar_text("json_schema", record(**{name: TEXT}))) for name in "ab"]
    place_of(beginnings[0], '{"a":"x')
    monkeypatch.setattr(place_memory, "MAX_BYTES", compiler._place_memory._num_bytes + 1)
    first = beginnings[0].places.beginning
    assert first.next
    behind = matcher_behind(beginnings[1], '{"b":"x')
    assert not first.next
    assert beginnings[1].places.beginning.next
    place_of(beginnings[0], '{"a":"x')
    assert behind.take(beginnings[1]._rule.alphabet.quote_id, 90) == behind._rule.alphabet.quote_id
    assert compiler._place_memory._num_bytes <= place_memory.MAX_BYTES


@pytest.mark.parametrize(("num_states", "num_tokens", "num_kept"), [(1, 99, 1), (9, 7, 7), (9, 99, 9)])
def test_so_many_places_near_the_beginning_keep_what_llguidance_has_taken(
    monkeypatch: pytest.MonkeyPatch, num_states: int, num_tokens: int, num_kept: int
) -> None:
    monkeypatch.setattr(document_places, "MAX_STATES", num_states)
    monkeypatch.setattr(token_matcher, "MOST_KEPT", num_tokens)
    beginning = matcher_of(record(a=TEXT))
    for number in range(2):
        answer, states = beginning.copy(), []
        for byte in b'{"a":"xyz':
            answer.batch.masks([(answer, 400)])
            answer.take(answer._rule.alphabet.of_byte(byte), 400)
            if number:  # it has taken nothing by itself
                assert answer.state is not None
                states.append(answer.place.state is not None)
    assert sum(states) == num_kept
    beginning.places.forget()
    assert answer.place.state is None
