"""What a claim's answer says of a job."""

from __future__ import annotations

import pytest

from orcd.errors import InvalidRequest, LogDamaged
from orcd.events import Packing, Position, Started, encode_event
from orcd.request import Request
from orcd.store.claim import Claim, Lease
from orcd.store.token_log import LoggedEvent
from tests.orcd.job_record import recorded

RECORD = {
    b"request": b'{"prompt":"x","seed":1}',
    b"epoch": b"7",
    b"token": b"a1",
    b"attempt": b"2",
    b"created_ms": b"10",
    b"started_ms": b"20",
    b"deadline_ms": b"0",
}
STARTED = Started("j", "m", 1, 1, "print")
LOG = [[b"0-1", [b"e", encode_event(STARTED)]]]


def read(log: list = LOG, **fields: bytes) -> Claim:
    record = RECORD | {name.encode(): value for name, value in fields.items()}
    messages = [recorded("a", timelimit=[None, None]), recorded("b", timelimit=[9, 8]), recorded("c")]
    return Claim.read("j", 30, "print", record, log, messages)


def test_a_claim_holds_what_the_record_and_the_log_say():
    claim = read()
    assert claim.request == Request(prompt="x", seed=1)
    assert claim.lease == Lease(7, "a1")
    assert (claim.attempt, claim.created_ms, claim.started_ms, claim.claimed_ms) == (2, 10, 20, 30)
    assert (claim.first_token_ms, claim.deadline_ms, claim.cancelled) == (None, 0, False)
    assert (claim.fingerprint, claim.time_limit_s) == ("print", 8)
    assert claim.log == (LoggedEvent(Position(0, 1), STARTED),)


@pytest.mark.parametrize(
    ("field", "packing"),
    [({}, Packing.NOTHING), ({"packed": b"1"}, Packing.LOGPROBS), ({"packed": b"2"}, Packing.TOKENS)],
)
def test_a_claim_says_what_its_sender_reads(field: dict[str, bytes], packing: Packing):
    assert read(**field).packing is packing
    assert read(packed=b"9").packing is Packing.TOKENS, "a newer sender reads what this version writes"


def test_a_wish_to_cancel_and_the_first_token_s_time_are_told():
    claim = read(cancel=b"1", first_token_ms=b"25")
    assert claim.cancelled
    assert claim.first_token_ms == 25


def test_a_request_that_cannot_be_read_is_an_error_in_the_claim():
    assert isinstance(read(request=b"{}").request, InvalidRequest)


def test_a_damaged_answer_is_refused():
    """F05: one record that cannot be read."""
    with pytest.raises(ValueError):
        read(attempt=b"?")
    with pytest.raises(LogDamaged):
        read([[b"5-0", [b"e", encode_event(STARTED)]]])
    with pytest.raises(TypeError):
        read(None)
