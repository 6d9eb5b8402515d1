import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import contract
from worker.contract import (
    Abort,
    Add,
    Choice,
    Fatal,
    FrameSplitter,
    Load,
    Outputs,
    Ready,
    Sampling,
    Shutdown,
    Stats,
    TokenOutput,
    Usage,
    join_outputs,
)

EVERYTHING = Sampling(
    max_tokens=9, temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
    frequency_penalty=-0.3, logit_bias={7: -1.5}, seed=2**64 - 1, stop_token_ids=(1, 2), min_tokens=3, logprobs=2,
    bad_words=((4,), (5, 6)), prompt_logprobs=1,
)  # fmt: skip
REQUESTS = [
    Add("r", (1, 2), Sampling(max_tokens=1)),
    Add("r", (1, 2), EVERYTHING, (Choice(0, (5,)), Choice(3)), priority=-2, grammar="start: /[0-9]+/"),
    Abort("r"),
    Abort("r", 1),
    Shutdown(),
]
EVENTS = [
    Load(50, 10, 20),
    Load(50, 10, 20, 1500),
    Ready("m", "qwen2", "cpu", 100, 64, 64, 8, 12, 1 << 40, 77, "f-float32-cpu-1"),
    Outputs(()),
    Outputs((TokenOutput("r", 0, (5,), "stop", b"own, id, other"),)),
    Outputs((TokenOutput("r", 0, (5,), usage=Usage(1, 2), prompt_logprobs=b"\x00\xff"),)),
    Outputs((TokenOutput("r", 0, (5,), cached_tokens=16),)),
    Outputs((TokenOutput("r", 1, (), "error", error_code="VRAM_OOM", error_message="no room"),)),
    Stats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, healthy=False),
    Stats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, step_tokens=contract.StepSizes((1, *[0] * 13), 1)),
    Fatal("INTERNAL", "why"),
]


def body_of(frame: bytes) -> bytes:
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return frame[4:]


@pytest.mark.parametrize("request_", REQUESTS, ids=repr)
def test_requests_survive_the_wire(request_: contract.Request):
    assert contract.decode_request(body_of(contract.encode(request_))) == request_


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_the_wire(event: contract.Event):
    assert contract.decode_event(body_of(contract.encode(event))) == event


def test_the_bytes_on_the_wire_do_not_change():
    assert contract.encode(Abort("r", 1)).hex() == "0000000a93a561626f7274a17201"
    assert contract.encode(Shutdown()).hex() == "0000000a91a873687574646f776e"
    assert msgspec.msgpack.decode(body_of(contract.encode(REQUESTS[0]))) == [
        "add", "r", [1, 2], [1, 1.0, 1.0, 0, 0.0, 1.0, 0.0, 0.0, {}, 0, [], 0, None, [], None], [[0, []]], 0, "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["unknown", 1]),
        msgspec.msgpack.encode(["add", 1]),
        msgspec.msgpack.encode(["abort", "r", "one"]),
        contract.encode(EVENTS[0])[4:],
    ],
)
def test_a_body_that_is_no_request_is_a_msgspec_error(body: bytes):
    with pytest.raises(msgspec.MsgspecError):
        contract.decode_request(body)


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(1, 40), max_size=30))
def test_frames_come_out_whole_however_the_stream_is_cut(sizes: list[int]):
    frames = [contract.encode(each) for each in REQUESTS]
    stream, splitter, bodies = b"".join(frames), FrameSplitter(), []
    for size in sizes:
        bodies += splitter.feed(stream[:size])
        stream = stream[size:]
    bodies += splitter.feed(stream)
    assert bodies == [frame[4:] for frame in frames]


def test_a_consumer_that_stops_early_finds_the_rest_later():
    splitter = FrameSplitter()
    frames = splitter.feed(b"".join(map(contract.encode, REQUESTS)))
    first = next(frames)
    frames.close()
    assert [first, *splitter.feed(b"")] == [contract.encode(each)[4:] for each in REQUESTS]


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come():
    with pytest.raises(ValueError, match="at most"):
        list(FrameSplitter().feed((contract.MAX_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_outputs_of_several_steps_are_joined_with_their_logprobs_and_the_last_reason():
    run = [TokenOutput("a", 0, (1,), None, b"one "), TokenOutput("a", 0, (2, 3), "length", b"two three ")]
    assert join_outputs(run) == TokenOutput("a", 0, (1, 2, 3), "length", b"one two three ")
    usage = Usage(3, 1)
    run = [TokenOutput("b", 0, (4,)), TokenOutput("b", 0, (5,), "stop", usage=usage)]
    assert join_outputs(run) == TokenOutput("b", 0, (4, 5), "stop", usage=usage)
    run = [TokenOutput("c", 0, (4,), prompt_logprobs=b""), TokenOutput("c", 0, (5,))]
    assert join_outputs(run) == TokenOutput("c", 0, (4, 5), prompt_logprobs=b"")
    run = [TokenOutput("d", 0, (token_id,), cached_tokens=16) for token_id in (4, 5)]
    assert join_outputs(run) == TokenOutput("d", 0, (4, 5), cached_tokens=16)


def test_what_answers_cost_adds_up():
    assert Usage(3, 1).plus(Usage(2, 5)) == Usage(5, 6)
    assert Usage(3, 1).plus(None) == Usage(3, 1)


def test_an_output_that_is_alone_is_left_as_it_is():
    error = TokenOutput("b", 0, (), "error", error_code="VRAM_OOM", error_message="full")
    assert join_outputs([error]) is error


def test_the_requests_in_flight_survive_their_file_whatever_stands_behind_them():
    content = contract.encode_in_flight(["a#1", "b#2"])
    assert contract.decode_in_flight(content) == {"a#1", "b#2"}
    assert contract.decode_in_flight(content + b"of a longer list") == {"a#1", "b#2"}
    assert contract.decode_in_flight(contract.encode_in_flight([])) == frozenset()


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"junk" * 9, contract.encode_in_flight(["a#1", "b#2"])[:-1]])
def test_requests_in_flight_that_cannot_be_read_are_none(content: bytes):
    assert contract.decode_in_flight(content) == frozenset()


def test_requests_in_flight_of_another_shape_are_none():
    body = msgspec.msgpack.encode({"a": 1})
    content = len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body
    assert contract.decode_in_flight(content) == frozenset()
