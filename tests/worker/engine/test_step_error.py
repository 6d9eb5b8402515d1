import pytest

from kernels.errors import OutOfDeviceMemory
from orcd.errors import InvalidRequest, OrcdError, VramOom
from worker.engine.step_error import step_error


def test_an_error_with_a_code_is_told_as_it_is():
    error = InvalidRequest("top_k must be at least 0")
    assert step_error(error) is error


@pytest.mark.parametrize("error", [MemoryError(), OutOfDeviceMemory(8, 4)])
def test_too_little_memory_is_the_requests_size(error: Exception):
    assert isinstance(step_error(error), VramOom)


def test_of_any_other_exception_its_type_and_place_are_told_but_not_its_text():
    try:
        {}["what a user wrote"]
    except KeyError as error:
        told = step_error(error)
    assert type(told) is OrcdError
    assert "KeyError at test_step_error.py:" in told.message
    assert "user" not in told.message
