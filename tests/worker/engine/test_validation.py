import math

import pytest

from kernels.errors import OutOfDeviceMemory
from orcd.errors import ContextLengthExceeded, InvalidRequest, OrcdError, VramOom
from orcd.sampling import MAX_PROMPT_LOGPROBS
from worker.contract import Add, Choice, Sampling, TokenOutput
from worker.engine.validation import refusal, step_error, validate_add


def check(add: Add) -> None:
    validate_add(add, vocab_size=100, context_length=50, cache_tokens=40)


def add(**fields: object) -> Add:
    return Add(**{"request_id": "r", "prompt_ids": (1, 2), "sampling": Sampling(max_tokens=5), **fields})


def test_a_request_with_every_option_at_its_bounds_passes():
    check(add(prompt_ids=tuple(range(39)), sampling=Sampling(max_tokens=10**9, temperature=2.0, top_p=1.0, min_p=1.0,
          seed=2**64 - 1, logit_bias={99: -100.0}, stop_token_ids=(0, 99), logprobs=20,
          bad_words=((99,), (1, 1)))))  # fmt: skip


def test_the_ids_of_a_prompt_come_back_packed():
    assert validate_add(add(), vocab_size=100, context_length=50, cache_tokens=40) == b"\1\0\0\0\2\0\0\0"


@pytest.mark.parametrize("token_id", [-1, 100, 2**31, 2**40, -(2**40)])
def test_an_id_that_is_no_tokens_is_refused(token_id: int):
    with pytest.raises(InvalidRequest, match="prompt_ids must be token ids from 0 to 99"):
        check(add(prompt_ids=(1, token_id)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("logit_bias", {100: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("seed", 2**64),
        ("stop_token_ids", (-1,)),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("prompt_logprobs", 21),
        ("bad_words", ((),)),
        ("bad_words", ((1, 100),)),
        ("bad_words", tuple((token_id,) for token_id in range(100))),
    ],
)
def test_a_sampling_field_out_of_range_is_named(field: str, value: object):
    with pytest.raises(InvalidRequest, match=field):
        check(add(sampling=Sampling(**{"max_tokens": 5, field: value})))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_ids", ()),
        ("prompt_ids", (1, 100)),
        ("prompt_ids", (-1,)),
        ("choices", ()),
        ("choices", (Choice(1), Choice(1))),
    ],
)
def test_a_broken_request_names_its_field(field: str, value: object):
    with pytest.raises(InvalidRequest, match=field):
        check(add(**{field: value}))


def test_more_log_probabilities_of_a_prompt_than_are_reported_are_refused():
    def check(num_tokens: int, num_top: int) -> None:
        request = add(prompt_ids=(1,) * num_tokens, sampling=Sampling(max_tokens=5, prompt_logprobs=num_top))
        validate_add(request, vocab_size=100, context_length=10**6, cache_tokens=10**6)

    check(MAX_PROMPT_LOGPROBS // 2, 1)
    check(MAX_PROMPT_LOGPROBS // 21, 20)
    for num_tokens, num_top in ((MAX_PROMPT_LOGPROBS // 2 + 1, 1), (MAX_PROMPT_LOGPROBS + 1, 0)):
        with pytest.raises(InvalidRequest, match=f"^prompt_logprobs: for the {num_tokens} tokens .* at most 65536"):
            check(num_tokens, num_top)


def test_output_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(InvalidRequest, match="output_ids"):
        check(add(choices=(Choice(0, (100,)),)))


def test_a_prompt_that_fills_the_context_leaves_no_room_for_output():
    with pytest.raises(ContextLengthExceeded, match="50 tokens and the context 50"):
        check(add(prompt_ids=(1,) * 50))


def test_a_prompt_that_never_fits_the_cache_is_out_of_memory_and_may_be_tried_elsewhere():
    with pytest.raises(VramOom, match="KV cache holds 40") as caught:
        check(add(prompt_ids=(1,) * 45))
    assert caught.value.retriable


@pytest.mark.parametrize(("choices", "answered"), [((Choice(0), Choice(3)), (0, 3)), ((), (0,))])
def test_each_choice_of_a_refused_request_has_its_answer(choices: tuple[Choice, ...], answered: tuple[int, ...]):
    assert refusal(add(choices=choices), VramOom("no room")) == [
        TokenOutput("r", choice, (), "error", error_code="VRAM_OOM", error_message="no room") for choice in answered
    ]


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
    assert "KeyError at test_validation.py:" in told.message
    assert "user" not in told.message
