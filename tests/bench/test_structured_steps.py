from __future__ import annotations

import re

import pytest

from tests.bench.structured_steps import main, measure, synthetic_tokenizer
from tests.models.files import SMALL
from tests.worker.text.grammar.compilers import BYTE_LEVEL, tokenizer_of


def test_all_answers_are_counted_and_all_tokens_of_them() -> None:
    cost = measure(tokenizer_of(BYTE_LEVEL), 2, 150, max_tokens=180)
    assert cost.num_answers >= 2
    assert cost.num_tokens == 300 + cost.num_forced
    assert cost.num_forced > 0
    assert min(timer.own_s for timer in (cost.masks, cost.taken, cost.forced)) > 0


def test_the_vocabulary_that_is_made_up_is_as_large_as_qwens() -> None:
    tokenizer = synthetic_tokenizer()
    assert tokenizer.vocab_size == 151936
    assert 151645 in tokenizer.end_ids


def test_each_part_of_a_step_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(SMALL[BYTE_LEVEL]), "--streams", "2", "--steps", "3"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+ tokens, .* % not drawn, 0 answers; of a token:", first)
    assert [line.split()[0] for line in others] == ["masks", "taken", "forced"]
