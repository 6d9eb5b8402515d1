from __future__ import annotations

import pytest

from tests.chaos.assessment import Assessment
from tests.chaos.clients.seen import Seen
from tests.chaos.faults.fault import Staged


def stream(
    *arrivals: float, error: str = "", submitted_s: float = 10.0, kind: str = "events", job_id: str = "j"
) -> Seen:
    ended_s = (arrivals or (30.0,))[-1]
    return Seen(kind, "m", job_id, submitted_s, submitted_s, ended_s, list(arrivals), error=error)


def rollback() -> Staged:
    return Staged("rollback", False, 19.0, 20.0, forgotten_since_s=18.5, forgetting_ended_s=20.0)


def outcome(seen: Seen, *staged: Staged) -> str:
    (row,) = Assessment([seen], staged, lease_s=3).client_rows()
    return next(iter(row.counts))


def test_an_error_that_nothing_explains_is_a_failure() -> None:
    assert outcome(stream(20.0)) == "right"
    assert outcome(stream(20.0, error="LOG_DAMAGED")) == "failed"
    assert outcome(stream(20.0, error="INVALID_REQUEST"), rollback()) == "failed", "it was submitted before"


def test_what_a_client_must_expect_is_none() -> None:
    seen = stream(20.0, error="CANCELLED")
    seen.may_fail = ("CANCELLED",)
    assert outcome(seen) == "ended"


def test_what_redis_forgot_may_be_said_in_an_error() -> None:
    assert outcome(stream(25.0, error="LOG_DAMAGED"), rollback()) == "honest"
    assert outcome(stream(25.0, error="INVALID_REQUEST", submitted_s=19.0), rollback()) == "honest"
    lost = stream(submitted_s=19.0, kind="Celery message")
    lost.problem = "lost"
    assert outcome(lost, rollback()) == "honest"
    lost.asked_s = lost.submitted_s = 10.0
    assert outcome(lost, rollback()) == "lost"


def test_a_client_may_note_late_that_redis_took_its_job() -> None:
    seen = stream(25.0, error="INVALID_REQUEST", submitted_s=22.0)
    assert outcome(seen, rollback()) == "failed", "it was submitted after that"
    seen.asked_s = 19.9
    assert outcome(seen, rollback()) == "honest"


def test_wrong_text_is_never_excused() -> None:
    seen = stream(25.0)
    seen.problem = "wrong"
    assert outcome(seen, rollback()) == "wrong"


def test_a_damaged_job_may_fail_and_no_other() -> None:
    staged = Staged("hole", False, 19.0, 20.0, targets={"a"}, target_errors=("LOG_DAMAGED",))
    assert outcome(stream(25.0, error="LOG_DAMAGED", job_id="a"), staged) == "honest"
    assert outcome(stream(25.0, error="LOG_DAMAGED", job_id="b"), staged) == "failed"
    assert outcome(stream(25.0, error="INTERNAL", job_id="a"), staged) == "failed"


@pytest.mark.parametrize(
    ("arrivals", "expected_s"),
    [
        ((11.0, 19.9, 24.0), 4.0),
        ((11.0, 20.2, 24.0, 24.1), 4.0),  # tokens were on their way when the process died
        ((11.0, 21.0, 22.0), 1.0),
        ((11.0, 19.9), 0.0),  # over before
    ],
)
def test_recovery_is_from_the_kill_to_the_next_token(arrivals: tuple[float, ...], expected_s: float) -> None:
    assessment = Assessment([stream(*arrivals)], [Staged("kill", True, 20.0, 20.0)], lease_s=3)
    row, _ = assessment.fault_rows(["kill"])
    assert row.worst_recovery_s == pytest.approx(expected_s)
    assert not assessment.failures(0.0)


def test_a_recovery_that_takes_too_long_is_a_failure() -> None:
    assessment = Assessment([stream(19.0, 26.0)], [Staged("kill", True, 20.0, 20.0)], lease_s=3)
    assert "6.0 s after kill" in assessment.failures(0.0)[0]


def test_a_recovery_counts_from_when_the_model_is_served_again() -> None:
    kill = Staged("kill", True, 20.0, 20.0, back_s={"m": 25.0})
    assert not Assessment([stream(19.0, 26.0)], [kill], lease_s=3).failures(0.0)


def test_a_recovery_that_another_fault_fell_into_is_not_timed() -> None:
    faults = [Staged("kill", True, 20.0, 20.0), Staged("other", False, 22.0, 27.0)]
    assert not Assessment([stream(19.0, 28.0)], faults, lease_s=3).failures(0.0)
