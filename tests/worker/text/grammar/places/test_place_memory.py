"""What is kept of the places of all grammars has a bound."""

from __future__ import annotations

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, tokenizer_of
from tests.worker.text.grammar.places.test_document_places import TEXT, matcher_behind, place_of, record
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.places import place_memory


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
