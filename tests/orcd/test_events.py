"""Events as JSON, their place in the log, and the cursor that gives each one once."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

import msgspec
import pytest

from orcd.errors import BY_CODE
from orcd.events import (
    End,
    Error,
    Loading,
    PackedLogprobs,
    Packing,
    Position,
    Queued,
    Started,
    Token,
    TokenLogprob,
    ToolCallDelta,
    decode_event,
    encode_event,
    state_after,
    tool_call_id,
)

END = End("stop", 3, 5, 1, 2, 3, "0" * 64)
EVENTS = [
    Queued(3),
    Queued(3, served=False),
    Queued(3, served=False, reason="no worker serves qwen"),
    Loading(50),
    Started("job-1", "demo", 1_700_000_000_000, 2),
    Started("job-1", "demo", 1_700_000_000_000, 2, "print"),
    Token("two words", 1, [5, 6]),
    Token("", 3, [7], choice=2, finish="stop", analysis="hm", commentary="call()"),
    Token('é\n"\u2028', 4, [8], logprobs=[TokenLogprob(8, -0.5, {8: -0.5, 9: -1.25})]),
    Token("a", 1, [8], prompt_logprobs=[None, TokenLogprob(8, -0.5, {}, {8: b"\xff"})]),
    Token("", 5, [9], tool_calls=[ToolCallDelta(0, "id", "f", "{"), ToolCallDelta(1, arguments="}")]),
    END,
    End("length", 3, 5, 1, 2, 3, "0" * 64, schema_valid=False, cached_tokens=2),
    Error("CANCELLED", "cancelled", False),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_the_way_through_json_as_one_line(event):
    line = encode_event(event)
    assert b"\n" not in line
    assert decode_event(line) == event
    assert json.loads(line)["type"] == type(event).__name__.lower()


def test_a_plain_token_is_written_short():
    assert encode_event(Token("a", 1, [5])) == b'{"type":"token","t":"a","i":1,"ids":[5]}'
    assert encode_event(Queued(1)) == b'{"type":"queued","position":1}'


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_packed_event_survives_the_way_through_json_as_one_line(event):
    line = encode_event(event, Packing.TOKENS)
    assert b"\n" not in line
    assert decode_event(line) == event
    assert encode_event(event, Packing.LOGPROBS) == encode_event(event)


def test_a_packed_token_is_a_list():
    assert encode_event(Token("é", 7, [5, 6]), Packing.TOKENS) == '["é",7,[5,6],0]'.encode()
    assert encode_event(Token("", 1, [5], choice=3), Packing.TOKENS) == b'["",1,[5],3]'
    finish = Token("", 2, [], choice=3, finish="stop")
    assert encode_event(finish, Packing.TOKENS) == encode_event(finish)


def test_an_older_reader_skips_the_fields_of_a_newer_writer():
    assert decode_event(b'{"type":"queued","position":1,"since":5}') == Queued(1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b'{"type":"song"}',
        b'{"type":"token"}',
        b"\xff",
        b"[]",
        b"[1,1,[5],0]",
        b'["a",1,[5]]',
        b'["a",1,[5],0,0]',
        b"[",
    ],
)
def test_what_is_no_event_is_a_value_error(line):
    with pytest.raises(ValueError):
        decode_event(line)


def packed(*records: tuple[float, ...], num_top: int, texts: list[Any], **fields: Any) -> PackedLogprobs:
    rows = [struct.pack(f"<f{num_top}i{num_top}f", *record) for record in records]
    return PackedLogprobs(num_top, b"".join(rows), texts, **fields)


def test_packed_log_probabilities_are_lists_for_readers_with_the_bytes_of_each_token():
    two = packed(
        (-0.5, 8, 9, -0.5, -1.25),
        (-3.0, 7, -1, -0.25, -float("inf")),
        num_top=2,
        texts=["é", [0xC3], "é", "\n", [0xFF, 0x22], ""],
    )
    line = encode_event(Token("é", 4, [8, 5], packed_logprobs=two))
    assert "é".encode() in line and b'"texts":["' in line and b"[195]" in line
    assert decode_event(line) == Token(
        "é",
        4,
        [8, 5],
        logprobs=[
            TokenLogprob(8, -0.5, {8: -0.5, 9: -1.25}, {8: "é".encode(), 9: b'\xff"'}),
            TokenLogprob(5, -3.0, {7: -0.25}, {5: b"\xc3", 7: b"\n"}),
        ],
    )


def test_packed_log_probabilities_of_a_prompt_name_its_tokens():
    none, own = packed(num_top=3, texts=[]), packed((-0.5,), num_top=0, texts=["a"], ids=[8])
    for of_prompt, expected in ((none, [None]), (own, [None, TokenLogprob(8, -0.5, {}, {8: b"a"})])):
        event = Token("", 1, [5], packed_prompt_logprobs=of_prompt)
        assert decode_event(encode_event(event)) == Token("", 1, [5], prompt_logprobs=expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"records": b"1234"},
        {"records": b""},
        {"texts": ["a", "b", "c"]},
        {"texts": ["a"]},
        {"texts": ["a", [256]]},
        {"texts": ["a", None]},
        {"num_top": 2},
        {"num_top": 10**12},
        {"num_top": -1},
        {"num_top": None},
    ],
)
def test_what_is_packed_wrongly_is_a_value_error(wrong: dict[str, Any]):
    fields = msgspec.to_builtins(packed((-0.5, 1, -0.5), num_top=1, texts=["a", "b"]))
    line = {"type": "token", "t": "a", "i": 1, "ids": [5]}
    assert decode_event(msgspec.json.encode({**line, "packed_logprobs": fields}))
    for name in ("packed_logprobs", "packed_prompt_logprobs"):
        with pytest.raises(ValueError):
            decode_event(msgspec.json.encode({**line, name: {"ids": [5], **fields, **wrong}}))


def test_every_event_leads_to_the_right_state():
    assert [state_after(event) for event in EVENTS[:8]] == [""] * 8
    assert state_after(END) == "succeeded"
    states = {code: state_after(Error(code, "", False)) for code in BY_CODE}
    assert states.pop("CANCELLED") == "cancelled"
    assert states.pop("EXPIRED") == "expired"
    assert set(states.values()) == {"failed"}


def test_positions_follow_the_tokens_and_then_the_events_at_the_same_token():
    position = Position()
    places = []
    for num_tokens in (0, 0, 3, 0, 1):
        position = position.after(num_tokens)
        places.append(f"{position.n}-{position.k}")
    assert places == ["0-1", "0-2", "3-0", "3-1", "4-0"]
    assert Position.parse(b"12-3") == Position(12, 3)
    assert sorted([Position(10, 0), Position(9, 5), Position(9, 4)]) == [
        Position(9, 4),
        Position(9, 5),
        Position(10, 0),
    ]


@pytest.mark.parametrize("seen", range(9))
def test_a_call_can_be_cut_at_any_character(seen):
    delta = ToolCallDelta(2, "id", "f", '{"a": 1}')
    rest = delta.behind(seen)
    assert (rest.index, rest.length) == (2, delta.length - seen)
    assert delta.arguments.endswith(rest.arguments)
    assert (rest.id, rest.name) == (("", "") if seen else ("id", "f"))


def test_the_id_of_a_call_is_always_the_same_and_one_that_mistrals_templates_take():
    assert tool_call_id("job", 0, 0) == tool_call_id("job", 0, 0) == "djCnOsyHQ"
    ids = {tool_call_id(job, choice, index) for job in "ab" for choice in range(3) for index in range(50)}
    assert len(ids) == 300
    assert all(re.fullmatch("[A-Za-z0-9]{9}", each) for each in ids)
