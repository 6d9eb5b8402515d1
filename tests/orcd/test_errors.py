import pytest

from orcd import errors
from orcd.errors import BY_CODE, OrcdError

CODES = [
    "CANCELLED",
    "CONFLICT",
    "CONTEXT_LENGTH_EXCEEDED",
    "CUDA_ERROR",
    "ENGINE_LOST",
    "EXPIRED",
    "INFERENCE_TIMEOUT",
    "INSUFFICIENT_VRAM",
    "INTERNAL",
    "INVALID_REQUEST",
    "LOG_DAMAGED",
    "MODEL_LOAD_FAILED",
    "MODEL_NOT_SERVED",
    "POISONED",
    "QUEUE_FULL",
    "REDIS_UNAVAILABLE",
    "VRAM_OOM",
]
"""Codes that were released and so must stay."""


@pytest.mark.parametrize("code", sorted({*CODES, *BY_CODE}))
def test_every_code_is_drawn_in_the_docstring_beside_its_class(code: str):
    line = next(line for line in errors.__doc__.splitlines() if code in line.split())
    assert BY_CODE[code].__name__ in line
    assert ("(retriable)" in line) == BY_CODE[code].retriable


def test_every_class_with_a_code_is_public_under_a_code_of_its_own():
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OrcdError)]
    assert sorted(kind.__name__ for kind in classes) == errors.__all__
    assert {kind.code: kind for kind in classes} == BY_CODE


def test_what_a_caller_can_retry_unchanged_is_what_may_go_better_elsewhere_or_later():
    assert {code for code, error in BY_CODE.items() if error.retriable} == {
        "VRAM_OOM",
        "CUDA_ERROR",
        "ENGINE_LOST",
        "QUEUE_FULL",
        "REDIS_UNAVAILABLE",
    }


def test_a_message_is_one_line():
    assert OrcdError("two\n  lines ").message == "two lines"


def test_what_is_printed_is_one_line_that_moves_no_cursor() -> None:
    assert errors.printable("Grüße, 雨 ☂") == "Grüße, 雨 ☂"
    assert errors.printable("a\nb\x1b[2J\u202e\udcff") == "a\\nb\\x1b[2J\\u202e\\udcff"
