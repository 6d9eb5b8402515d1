"""From a caller's fields to what is written and announced."""

from __future__ import annotations

import json

import pytest

from orcd.errors import Conflict, InvalidRequest, LogDamaged, ModelNotServed, QueueFull
from orcd.events import Packing
from orcd.request import Request, parse
from orcd.store.enqueue import Message
from orcd.store.submission import BATCH, Lifetime, Submission, add_stored, check_job_id, prepare_many, trace_parent

LIFETIME = Lifetime(60, 3600)


def test_a_submission_has_an_id_a_seed_and_its_message():
    submission = Submission.prepare({"prompt": "x", "model": "demo", "priority": 3}, None, LIFETIME)
    job_id = submission.message.job_id
    assert submission.message == Message(job_id, "orcd.demo", 3)
    assert submission.arguments[0] == job_id
    assert len(submission.arguments) == Submission.NUM_ARGUMENTS
    assert json.loads(submission.arguments[1])["seed"] >= 0
    assert Submission.prepare({"prompt": "x"}, None, LIFETIME).message.job_id != job_id


def test_many_are_prepared_in_batches_in_order():
    batches = prepare_many([{"prompt": "x"}] * (BATCH + 1), [f"job-{number}" for number in range(BATCH + 1)], LIFETIME)
    assert [len(batch) for batch in batches] == [BATCH, 1]
    assert [job.message.job_id for batch in batches for job in batch] == [
        f"job-{number}" for number in range(BATCH + 1)
    ]


def test_a_refusal_names_the_request_by_its_index():
    with pytest.raises(InvalidRequest, match=r"^request 1: nonsense: unknown field$"):
        prepare_many([{"prompt": "x"}, {"prompt": "x", "nonsense": 1}], None, LIFETIME)


def test_job_ids_may_be_uuids_and_names():
    for job_id in ("0", "a" * 128, "batch_1:line-7.b", "3f2b8c1e-0000-4000-8000-000000000000"):
        assert check_job_id(job_id) == job_id


def test_the_queue_is_that_of_the_model():
    assert Submission.of("job-1", Request(prompt="x"), LIFETIME).message.queue == "orcd"
    assert Submission.of("job-1", Request(prompt="x", model="demo"), LIFETIME).message.queue == "orcd.demo"


def test_a_priority_that_is_no_integer_is_refused_in_a_request_made_by_hand_too():
    """Its message went to a list that nobody reads: orcd:5.0."""
    with pytest.raises(InvalidRequest, match=r"^priority: expected `int`, got `float`$"):
        Submission.prepare(Request(prompt="x", priority=5.0), None, LIFETIME)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["model", "tenant"])
def test_a_name_that_is_no_text_is_refused_by_its_field(field: str) -> None:
    """As an argument of a command line that is not UTF-8."""
    with pytest.raises(InvalidRequest, match=rf"^{field}: holds a lone surrogate, which is not valid Unicode text$"):
        Submission.prepare({"prompt": "x", field: "caf\udce9"}, None, LIFETIME)


def test_clients_read_what_is_packed_and_nobody_knows_it_of_others():
    assert Submission.prepare({"prompt": "x"}, None, LIFETIME).arguments[-1] == 2
    assert Submission.of("job-1", parse({"prompt": "x"}), LIFETIME).arguments[-1] == 0


def digest(**fields: object) -> str:
    return str(Submission.prepare(fields, "job-1", LIFETIME).arguments[2])


def test_the_same_fields_have_the_same_digest_whatever_seed_is_drawn():
    assert digest(prompt="x", logit_bias={3: 1.0, 2: 2.0}) == digest(logit_bias={2: 2.0, 3: 1.0}, prompt="x", n=1)
    for other in ({"prompt": "y"}, {"prompt": "x", "seed": 1}, {"prompt": "x", "priority": 1}):
        assert digest(**other) != digest(prompt="x")


def test_a_key_gives_an_id_that_does_not_show_it():
    def job_id(key: str) -> str:
        return Submission.prepare({"prompt": "x", "idempotency_key": key}, None, LIFETIME).message.job_id

    assert job_id("größer " * 8) == job_id("größer " * 8) == check_job_id(job_id("größer " * 8))
    assert len({job_id("a"), job_id("A"), job_id("a "), job_id("k" * 256)}) == 4
    assert digest(prompt="x", idempotency_key=None) == digest(prompt="x")


@pytest.mark.parametrize("key", ["", "k" * 257, 7, b"k", ["k"], "\ud800"])
def test_a_key_that_is_none_is_refused(key: object):
    with pytest.raises(InvalidRequest, match=r"^idempotency_key: ") as refusal:
        Submission.prepare({"prompt": "x", "idempotency_key": key}, None, LIFETIME)
    assert refusal.value.message.isascii()


def test_a_refusal_of_the_script_is_an_error_of_its_job():
    (batch,) = prepare_many([{"prompt": "x"}] * 2, ["a", "b"], LIFETIME)
    stored: list[str] = []
    add_stored(stored, batch, [1, 0])
    assert stored == ["a", "b"]
    with pytest.raises(Conflict, match="job b: the id belongs to another request"):
        add_stored([], batch, [1, -1])
    with pytest.raises(LogDamaged, match="job a: "):
        add_stored([], batch, [-2, 1])
    with pytest.raises(ModelNotServed, match="no worker serves the model now"):
        add_stored([], batch, [1, -4])


def test_a_full_queue_says_which_jobs_were_stored_whatever_else_was_refused():
    (batch,) = prepare_many([{"prompt": "x"}] * 3, ["a", "b", "c"], LIFETIME)
    with pytest.raises(QueueFull, match=r"^2 of the jobs were stored, the others not: .* again in 5 s") as refused:
        add_stored(["earlier"], batch, [-1, -3, 1])
    assert refused.value.stored == ("earlier", "c")
    with pytest.raises(QueueFull, match=r"^too many jobs wait") as refused:
        add_stored([], batch, [-3, -3, -3])
    assert refused.value.stored == ()


def test_a_request_that_was_read_elsewhere_is_prepared_as_it_is():
    request = Request(prompt="x", seed=5)
    [[submission]] = prepare_many([request], ["job-1"], LIFETIME)
    assert submission == Submission.of("job-1", request, LIFETIME, packing=Packing.TOKENS)


@pytest.mark.parametrize(
    ("text", "trace"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'b' * 16}-01"),
        (f"00-{'A' * 32}-{'b' * 16}-01", ""),
        (f"00-{'0' * 32}-{'b' * 16}-01", ""),
        (f"00-{'a' * 32}-{'0' * 16}-01", ""),
        (f"ff-{'a' * 32}-{'b' * 16}-01", ""),
        ("nonsense", ""),
        (7, ""),
        (None, ""),
    ],
)
def test_a_trace_parent_is_one_of_w3c_s_or_none(text: object, trace: str) -> None:
    assert trace_parent(text) == trace


def test_a_sender_s_trace_is_no_part_of_the_request() -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    with_trace = Submission.prepare({"prompt": "x", "traceparent": trace}, "job-1", LIFETIME)
    without = Submission.prepare({"prompt": "x", "traceparent": None}, "job-1", LIFETIME)
    assert with_trace.arguments == [*without.arguments[:-2], trace, 2]
    with pytest.raises(InvalidRequest, match="traceparent: must look like"):
        Submission.prepare({"prompt": "x", "traceparent": "mine"}, "job-1", LIFETIME)
