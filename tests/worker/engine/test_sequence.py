import pytest

from tests.worker.engine.bracket_constraint import BracketConstraint
from worker.contract import Sampling
from worker.engine.sequence import Sequence


class FixedConstraint(BracketConstraint):
    """Is complete, or not."""

    def __init__(self, is_complete: bool) -> None:
        super().__init__(0 if is_complete else 99)


def sequence(output_ids: list[int], **sampling: object) -> Sequence:
    options = Sampling(**{"max_tokens": 4, **sampling})
    return Sequence("r", 0, options, 0, [1, 2, 3, *output_ids], num_prompt=3, max_output=options.max_tokens)


def test_a_new_sequence_has_everything_pending_and_no_output():
    fresh = sequence([])
    assert (fresh.num_tokens, fresh.num_output, fresh.num_pending) == (3, 0, 3)
    assert not fresh.is_running


def test_it_ends_with_length_at_its_last_token():
    almost = sequence([7, 7, 7])
    almost.launch(6, True)
    almost.append(7)
    assert almost.finish_reason == "length"


def test_it_ends_with_stop_at_a_stop_token_even_on_its_last_token():
    almost = sequence([7, 7, 7], stop_token_ids=(9,))
    almost.launch(6, True)
    almost.append(9)
    assert almost.finish_reason == "stop"


def test_a_stop_token_in_the_prompt_or_before_min_tokens_ends_nothing():
    fresh = sequence([], stop_token_ids=(3,))
    fresh.update_finish_reason()
    assert fresh.finish_reason is None
    early = sequence([9], stop_token_ids=(9,), min_tokens=1)
    early.update_finish_reason()
    assert early.finish_reason is None


def test_tokens_of_its_prompt_are_reported_once_although_it_begins_anew():
    asking = sequence([], prompt_logprobs=0)
    assert asking.unreported(3) == range(0), "nobody wants them"
    asking.prompt_logprobs = bytearray()
    assert [asking.unreported(count) for count in (1, 2, 3)] == [range(1), range(2), range(2)]
    asking.launch(1, False)
    asking.drop_blocks()
    assert [asking.unreported(count) for count in (1, 2, 3)] == [range(1, 1), range(1, 2), range(1, 2)]
    asking.launch(3, True)
    asking.drop_blocks()
    assert list(asking.unreported(3)) == []


def test_log_probabilities_of_the_prompt_are_handed_out_once_and_never_before_all_are_there():
    asking = sequence([], prompt_logprobs=0)
    asking.prompt_logprobs = bytearray(b"1111")
    with pytest.raises(AssertionError, match="are missing"):
        asking.take_prompt_logprobs()
    asking.prompt_logprobs += b"2222"
    assert asking.take_prompt_logprobs() == b"11112222"
    with pytest.raises(AssertionError, match="once"):
        asking.take_prompt_logprobs()


def test_drawing_before_all_tokens_were_computed_is_a_bug_that_is_caught():
    with pytest.raises(AssertionError, match="drawn before"):
        sequence([]).launch(2, True)


def test_taking_a_token_that_nobody_drew_is_a_bug_that_is_caught():
    with pytest.raises(AssertionError, match="nobody drew"):
        sequence([]).append(5)


def test_a_choice_waits_for_its_leader_until_the_prompt_is_computed_or_the_leader_is_gone():
    leader, follower = sequence([]), sequence([])
    follower.leader = leader
    assert follower.waits_for_leader
    leader.num_computed = 3
    assert not follower.waits_for_leader
    leader.num_computed = 0
    leader.finish_reason = "abort"
    assert not follower.waits_for_leader


@pytest.mark.parametrize(
    ("sampling", "is_edited", "draws_in_graph"),
    [
        ({}, False, True),
        ({"temperature": 1.0, "top_k": 5}, False, True),
        ({"stop_token_ids": (9,)}, False, True),
        ({"min_tokens": 2}, False, True),
        ({"stop_token_ids": (9,), "min_tokens": 2}, True, True),
        ({"logprobs": 0}, False, False),
        ({"repetition_penalty": 1.1}, True, True),
        ({"presence_penalty": -0.5}, True, True),
        ({"frequency_penalty": 0.5}, True, True),
        ({"logit_bias": {1: 1.0}}, True, True),
        ({"bad_words": ((1,), (2, 3))}, True, True),
        ({"bad_words": ((2, 3),)}, False, True),
    ],
)
def test_it_knows_whether_its_logits_are_edited_and_whether_the_host_takes_part_in_its_draws(
    sampling: dict[str, object], is_edited: bool, draws_in_graph: bool
):
    fresh = sequence([], **sampling)
    assert (fresh.is_edited, fresh.draws_in_graph) == (is_edited, draws_in_graph)


@pytest.mark.parametrize(
    ("sampling", "takes_largest"),
    [
        ({}, True),
        ({"top_k": 3, "top_p": 0.5, "min_tokens": 2}, True),
        ({"temperature": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"logit_bias": {1: 1.0}}, False),
        ({"logprobs": 0}, False),
    ],
)
def test_of_temperature_0_it_takes_the_largest_logit_if_nothing_edits_or_reports_it(
    sampling: dict[str, object], takes_largest: bool
):
    assert sequence([], **{"temperature": 0.0, **sampling}).takes_largest == takes_largest


def test_with_a_constraint_the_host_takes_part_in_each_draw():
    constrained = Sequence("r", 0, Sampling(max_tokens=4), 0, [1, 2], 2, 4, constraint=FixedConstraint(False))
    assert not constrained.draws_in_graph and not constrained.takes_largest


@pytest.mark.parametrize(
    ("output_ids", "is_complete", "reason"),
    [
        ([], False, None),
        ([], True, "stop"),
        ([7], True, "stop"),
        ([7, 7, 7], False, None),
        ([7, 7, 7, 7], False, "length"),
        ([7, 7, 7, 7], True, "stop"),
        ([9], False, "stop"),
    ],
)
def test_it_ends_with_stop_where_its_constraint_is_complete(output_ids: list[int], is_complete: bool, reason: str):
    sampling = Sampling(max_tokens=4, stop_token_ids=(9,))
    constraint = FixedConstraint(is_complete)
    constrained = Sequence("r", 0, sampling, 0, [1, 9, *output_ids], 2, 4, constraint=constraint)
    constrained.update_finish_reason()
    assert constrained.finish_reason == reason
    assert constrained.num_left == 4 - len(output_ids)


def test_ids_that_would_end_it_are_banned_until_there_are_min_tokens():
    assert sequence([7], stop_token_ids=(9,), min_tokens=2).banned_ids == (9,)
    assert sequence([7, 7], stop_token_ids=(9,), min_tokens=2).banned_ids == ()


def test_a_new_block_table_is_a_new_revision_and_a_longer_one_is_not():
    fresh = sequence([])
    revision = fresh.revision
    fresh.block_ids.append(4)
    assert fresh.revision == revision
    fresh.drop_blocks()
    assert fresh.revision != revision
    assert not fresh.is_running
