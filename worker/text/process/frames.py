"""What crosses the socket between a `TextProcess` and its child, ``python -m worker.text.process``.

A frame is a 4-byte big-endian length and a JSON object. The parent sends one of `Call`, the child one of `Answer`, in
turn. JSON, because messages may hold integers of any size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from socket import socket
from typing import Any

import msgspec

RECEIVE_BYTES = 1 << 20
MAX_FRAME_BYTES = 256 * 1024 * 1024
"""The longest text of `chat_template.MAX_CHARACTERS`, with every character escaped, is shorter."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The first call: the chat template to render, None if there is none, and its special tokens."""

    template: str | None
    bos_token: str = ""
    eos_token: str = ""


class LoadVocabulary(msgspec.Struct, frozen=True, tag="load_vocabulary"):
    """The files to tokenise with: the model's, and its tokenizer.json or "". See `VocabularyFiles` for ``digest``."""

    model: str
    tokenizer: str
    digest: bytes = b""


class Render(msgspec.Struct, frozen=True, tag="render"):
    """The arguments of `ChatTemplate.render`."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    variables: Mapping[str, Any] | None


class Encode(msgspec.Struct, frozen=True, tag="encode"):
    """The arguments of `Tokenizer.encode`."""

    text: str
    add_special: bool
    parse_special: bool
    max_tokens: int | None
    stand_ins: Mapping[int, str] | None = None


class PrepareGrammars(msgspec.Struct, frozen=True, tag="prepare_grammars"):
    """Make of the vocabulary what grammars are compiled with."""


class CheckGrammar(msgspec.Struct, frozen=True, tag="check_grammar"):
    """A grammar of `worker.text.grammar.grammar_text`, to be compiled."""

    grammar: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The call has no other answer."""


class Text(msgspec.Struct, frozen=True, tag="text"):
    """What messages were rendered to."""

    text: str


class Ids(msgspec.Struct, frozen=True, tag="ids"):
    """Token ids of a text."""

    ids: list[int]


class GrammarChecked(msgspec.Struct, frozen=True, tag="grammar_checked"):
    """With how many tokens a document can be written; None for a grammar whose answers may end unfinished."""

    min_tokens: int | None


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The call has failed with an error of `orcd.errors`."""

    code: str
    message: str


Call = Start | LoadVocabulary | Render | Encode | PrepareGrammars | CheckGrammar
Answer = Done | Text | Ids | GrammarChecked | Refused

CPU_LIMIT_S: Mapping[type[Call], int] = {
    Start: 60,
    LoadVocabulary: 120,
    Render: 2,
    Encode: 60,
    PrepareGrammars: 60,
    CheckGrammar: 4,
}
"""Processor time that a call may take; the kernel counts whole seconds, so it may be one more."""
WALL_FACTOR = 4
"""On a busy machine a call may take so many times its processor time."""
MEMORY_BYTES = 2 * 1024**3
"""What the child may have beyond its code and vocabulary. Tokenising takes about 350 bytes a token while it goes on."""

_call_decoder: msgspec.json.Decoder[Call] = msgspec.json.Decoder(Call)
_answer_decoder: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def encode(frame: Call | Answer) -> bytes:
    """A frame's bytes, length included. Raises RecursionError, TypeError or ValueError for what is no plain JSON."""
    body = msgspec.json.encode(frame)
    return len(body).to_bytes(4, "big") + body


def receive_call(connection: socket) -> Call:
    """The next call, waited for. Raises OSError, or EOFError where the parent has gone."""
    return _call_decoder.decode(_receive(connection, math.inf))


def receive_answer(connection: socket, deadline: float) -> Answer:
    """The next answer. ``deadline`` is a time of the monotonic clock.

    Raises TimeoutError after that, another OSError, EOFError where the child has ended, or ValueError where it says
    what is no answer.
    """
    return _answer_decoder.decode(_receive(connection, deadline))


def _receive(connection: socket, deadline: float) -> bytearray:
    length = int.from_bytes(_read(connection, 4, deadline), "big")
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return _read(connection, length, deadline)


def _read(connection: socket, num_bytes: int, deadline: float) -> bytearray:
    read = bytearray(num_bytes)
    view, at = memoryview(read), 0
    while at < num_bytes:
        if deadline < math.inf:
            # What is there already is read also after the deadline: this process may have been stopped for a while.
            connection.settimeout(max(0.001, deadline - time.monotonic()))
        received = connection.recv_into(view[at : at + RECEIVE_BYTES])
        if not received:
            raise EOFError("the other side has closed the connection")
        at += received
    return read
