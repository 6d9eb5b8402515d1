from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcd.errors import InvalidRequest, OrcdError
from tests.bench.structured_rates import SCHEMA
from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint
from tests.worker.engine.generation import finish, ids_of, sequence
from worker.contract import Add, Sampling
from worker.engine.logits.token_masks import constrained_rows, constraint_error, masks_of, num_mask_words
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import Asked, TokenMask
from worker.load import load_engine, open_configured_device
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config
from worker.settings import Settings
from worker.text import tokenizer as tokenizers
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text


class MarkedConstraint(BracketConstraint):
    """Allows one id; keeps how many tokens were left, and the words of its mask."""

    def __init__(self, token_id: int, batch: MarkedBatch | None = None) -> None:
        super().__init__(1)
        self.token_id = token_id
        self.batch = batch

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        self.asked = num_left, len(mask)
        mask[self.token_id // 32] = 1 << self.token_id % 32


class MarkedBatch:
    """Asks them one after the other."""

    def __init__(self) -> None:
        self.calls: list[list[int | None]] = []

    def masks(self, asked: list[Asked]) -> list[TokenMask | int | Exception]:
        self.calls.append([getattr(constraint, "token_id", None) for constraint, _ in asked])
        return [self._mask(*each) for each in asked]

    def _mask(self, constraint: MarkedConstraint, num_left: int) -> TokenMask | Exception:
        words = np.zeros(7, np.uint32)
        try:
            constraint.write_mask(words.data, num_left)
        except ValueError as error:
            return error
        return TokenMask(words.tobytes())


def allowed_by(mask: TokenMask | int | OrcdError) -> list[int]:
    if isinstance(mask, int):
        return [mask]
    assert isinstance(mask, TokenMask), mask
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask.words, np.uint8), bitorder="little")).tolist()


def constrained(constraint: BracketConstraint | None, **options: object) -> Sequence:
    each = sequence([1, 2, 3], [0], num_prompt=2, **options)
    each.constraint = constraint
    return each


def test_rows_are_those_of_sequences_with_a_constraint():
    assert constrained_rows([constrained(None), constrained(MarkedConstraint(1)), constrained(None)]) == [1]
    assert [num_mask_words(size) for size in (1, 32, 33, 96)] == [1, 1, 2, 3]


@pytest.mark.parametrize("batches", [[None], [MarkedBatch()], [MarkedBatch(), None, MarkedBatch()]])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 100])
def test_each_sequence_gets_its_own_mask(num_rows: int, batches: list[MarkedBatch | None]):
    sequences = [constrained(MarkedConstraint(row, batches[row % len(batches)])) for row in range(num_rows)]
    assert [allowed_by(mask) for mask in masks_of(sequences, 7)] == [[row] for row in range(num_rows)]
    assert {each.constraint.asked for each in sequences} == {(7, 7)}


def test_a_batch_is_asked_once_for_all_of_its_rows():
    batches = [MarkedBatch(), MarkedBatch()]
    sequences = [constrained(MarkedConstraint(row, batches[row % 2])) for row in range(10)]
    masks_of(sequences, 7)
    assert [batch.calls for batch in batches] == [[[*range(start, 10, 2)]] for start in (0, 1)]


def test_those_of_a_batch_that_fail_or_have_nothing_left_have_an_error():
    batch = MarkedBatch()
    failing = FailingConstraint("write_mask", error=ValueError("secret"))
    failing.batch = batch
    sequences = [
        constrained(failing),
        constrained(MarkedConstraint(9, batch), min_tokens=5, stop_token_ids=(9,)),
        constrained(MarkedConstraint(11, batch), min_tokens=5, stop_token_ids=(9,)),
    ]
    *errors, mask = masks_of(sequences, 7)
    assert all(error.code == "INTERNAL" and "secret" not in error.message for error in errors)
    assert allowed_by(mask) == [11]


def test_of_one_id_that_alone_may_come_nothing_is_left_where_it_would_end_the_answer_too_soon():
    batch = MarkedBatch()
    batch.masks = lambda asked: [constraint.token_id for constraint, _ in asked]
    sequences = [
        constrained(MarkedConstraint(token_id, batch), min_tokens=5, stop_token_ids=(9,)) for token_id in (9, 11)
    ]
    error, mask = masks_of(sequences, 7)
    assert isinstance(error, OrcdError) and mask == 11


def test_those_that_fail_have_an_error():
    sequences = [
        constrained(FailingConstraint("write_mask")),
        constrained(FailingConstraint("write_mask", error=ValueError("secret"))),
        constrained(MarkedConstraint(9), min_tokens=5, stop_token_ids=(9,)),
        constrained(MarkedConstraint(9), min_tokens=1, stop_token_ids=(9,)),
    ]
    *errors, mask = masks_of(sequences, 1)
    assert all(error.code == "INTERNAL" and "secret" not in error.message for error in errors)
    assert allowed_by(mask) == [9]


def test_errors_with_a_code_stay_what_they_are():
    refused = InvalidRequest("no such thing")
    assert constraint_error(refused) is refused


def answers(model: Path, device_name: str, shares: Iterable[int], **options: int) -> list[dict[tuple[str, int], Any]]:
    """What 12 streams say of which every so manieth must fit a schema, for each of ``shares``; the same seeds."""
    settings = Settings(model=str(model), device=device_name, vram_fraction=0.2, **options)
    gguf = open_gguf(model)
    tokenizer = tokenizers.from_metadata(gguf.metadata)
    compiler = GrammarCompiler(tokenizer, read_model_config(gguf).vocab_size, num_threads=2)
    matcher = compiler.compile(grammar_text("json_schema", SCHEMA["items"]))
    machine = load_engine(gguf, open_configured_device(settings), settings, lambda _done, _total: None)
    said = []
    for share in shares:
        for number in range(12):
            sampling = Sampling(max_tokens=90 + 5 * number, temperature=1.0, seed=number)
            machine.add(Add(f"r{number}", (5, 6, 7 + number), sampling), None if number % share else matcher)
        said.append({key: (ids_of(each), each[-1].finish_reason) for key, each in finish(machine).items()})
    return said


@pytest.mark.gpu
def test_on_a_gpu_those_with_a_schema_say_the_same_alone_and_among_many(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = (12, 3, 1)
    alone = answers(demo_model, "cuda:0", shares, max_sequences=1)
    assert alone[0]["r0", 0] == alone[2]["r0", 0] and alone[0]["r1", 0] != alone[2]["r1", 0]
    for many in (64, 1, 9):
        monkeypatch.setattr("worker.engine.scheduler.MANY", many)
        assert answers(demo_model, "cuda:0", shares, max_sequences=12) == alone
