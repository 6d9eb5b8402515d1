from __future__ import annotations

from collections.abc import Iterator

import pytest

from orcd.errors import InvalidRequest
from tests.models.files import SMALL
from worker.text.grammar.grammar_text import grammar_text
from worker.text.process import checked_grammars
from worker.text.process.checked_grammars import CheckedGrammars
from worker.text.process.text_process import TextProcess, VocabularyFiles


@pytest.fixture(scope="module")
def process() -> Iterator[TextProcess]:
    with TextProcess(None, VocabularyFiles(str(SMALL["qwen2-q4_k_m"]))) as process:
        yield process


def test_what_was_said_of_a_grammar_is_known_from_then_on(process: TextProcess) -> None:
    grammars = CheckedGrammars()
    text = grammar_text("json_object", None)
    with pytest.raises(KeyError):
        grammars.known(text)
    assert grammars.check(text, process) == grammars.known(text) == 2
    assert grammars.check(grammar_text("regex", "a"), process) == 1


def test_a_grammar_that_was_refused_is_refused_again_with_the_same_words(process: TextProcess) -> None:
    grammars = CheckedGrammars()
    text = grammar_text("regex", "(")
    messages = set()
    for number in range(3):
        with pytest.raises(InvalidRequest) as refused:
            grammars.known(text) if number == 2 else grammars.check(text, process)
        messages.add(refused.value.message)
    assert len(messages) == 1


def test_the_oldest_are_forgotten(process: TextProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_grammars, "MAX_KNOWN", 2)
    grammars = CheckedGrammars()
    texts = [grammar_text("choice", [str(number)]) for number in range(3)]
    for text in texts:
        grammars.check(text, process)
    with pytest.raises(KeyError):
        grammars.known(texts[0])
    assert grammars.known(texts[2]) == 1
