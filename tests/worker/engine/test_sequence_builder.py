import pytest

from orcd.errors import InvalidRequest, OrcdError
from tests.worker.engine.bracket_constraint import BracketConstraint, FailingConstraint
from worker.contract import Add, Choice, Sampling
from worker.engine.sequence_builder import SequenceBuilder

LIMITS = {"vocab_size": 100, "context_length": 50, "cache_tokens": 40, "recompute_at": None, "prefix_cache": True}


def builder(**limits: object) -> SequenceBuilder:
    return SequenceBuilder(**{**LIMITS, **limits})


def add(*choices: Choice, max_tokens: int = 5, prompt_ids: tuple[int, ...] = (1, 2)) -> Add:
    return Add("r", prompt_ids, Sampling(max_tokens=max_tokens), choices or (Choice(0),), priority=3)


def test_each_choice_is_a_sequence_that_goes_on_where_its_output_ends():
    first, second = builder().build(add(Choice(0), Choice(4, (8, 9))), None)
    assert (first.choice, first.token_ids, first.num_prompt) == (0, [1, 2], 2)
    assert (second.choice, second.token_ids, second.num_prompt) == (4, [1, 2, 8, 9], 2)
    assert (second.request_id, second.priority, second.constraint) == ("r", 3, None)


def test_the_first_choice_that_goes_on_leads_the_others_and_reports_the_prompt():
    choices = Choice(0, (1, 2, 3, 4, 5)), Choice(1), Choice(2)
    sampling = Sampling(max_tokens=5, prompt_logprobs=0)
    done, leader, other = builder().build(Add("r", (1, 2), sampling, choices), None)
    assert (done.leader, leader.leader, other.leader) == (None, None, leader)
    assert (done.prompt_logprobs, leader.prompt_logprobs, other.prompt_logprobs) == (None, bytearray(), None)
    assert [each.prompt_logprobs for each in builder().build(add(), None)] == [None]


def test_an_output_ends_where_the_context_or_the_cache_does():
    (sequence,) = builder().build(add(max_tokens=100), None)
    assert (builder().max_sequence_tokens, sequence.max_output) == (40, 38)
    (sequence,) = builder(cache_tokens=60).build(add(max_tokens=100), None)
    assert sequence.max_output == 48


def test_a_choice_that_was_done_has_ended_already():
    first, second = builder().build(add(Choice(0, (1, 2, 3, 4, 5)), Choice(1, (1, 2, 3, 4))), None)
    assert (first.finish_reason, second.finish_reason) == ("length", None)


def test_what_the_engine_refuses_is_not_built():
    with pytest.raises(InvalidRequest, match="prompt_ids"):
        builder().build(add(prompt_ids=(100,)), None)


def test_who_shares_blocks_depends_on_the_prefix_cache_and_on_the_models_limit():
    assert builder().hash_root("a", 30) == builder().hash_root("b", 20)
    alone = builder(prefix_cache=False)
    assert alone.hash_root("a", 30) == alone.hash_root("a", 20) != alone.hash_root("b", 30)
    limited = builder(recompute_at=25)
    assert limited.hash_root("a", 25) != limited.hash_root("a", 26)


def test_each_choice_has_a_constraint_of_its_own_that_has_taken_its_output():
    given = BracketConstraint(5)
    first, second = builder().build(add(Choice(0), Choice(1, (8, 2))), given)
    assert (first.constraint.token_ids, second.constraint.token_ids, given.token_ids) == ([], [8, 2], [])
    assert first.constraint is not given


def test_a_choice_whose_document_was_complete_has_ended_already():
    (sequence,) = builder().build(add(Choice(0, (2, 4))), BracketConstraint(2))
    assert sequence.finish_reason == "stop"


@pytest.mark.parametrize("method", ["copy", "restore"])
def test_a_constraint_that_fails_is_an_error_without_its_text(method: str):
    failing = FailingConstraint(method, 1, ValueError("secret"))
    with pytest.raises(OrcdError, match="ValueError at") as caught:
        builder().build(add(Choice(0, (2,))), failing)
    assert "secret" not in caught.value.message
