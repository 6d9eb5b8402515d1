"""Log probabilities as responses have them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from orcd.events import TokenLogprob
from orcd.result import Result


def listed(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As chat completions and responses have them: an entry a token, with its alternatives, the likeliest first."""
    return [
        {
            **_entry(each, each.id, each.logprob),
            "top_logprobs": [_entry(each, token_id, logprob) for token_id, logprob in _ranked(each)],
        }
        for each in logprobs
    ]


def columns(logprobs: Sequence[TokenLogprob], start: int) -> dict[str, Any]:
    """As completions have them: parallel lists; ``start`` is where the answer begins in the choice's text.

    As at OpenAI a token is among the likeliest at its place also where it is none of these.
    """
    return {
        "tokens": [_text(each, each.id) for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [
            {
                _text(each, token_id): logprob
                for token_id, logprob in {**dict(_ranked(each)), each.id: each.logprob}.items()
            }
            for each in logprobs
        ],
        "text_offset": [start + offset for offset in _offsets([each.pieces.get(each.id, b"") for each in logprobs])],
    }


def columns_of_prompt(result: Result, length: int) -> dict[str, Any]:
    """As completions have them of a prompt of ``length`` characters, whose first token has null.

    A tokenizer may put tokens and a space in front of a text: they are at its beginning.
    """
    rest = [each for each in result.prompt_logprobs or () if each is not None]
    own = columns(rest, 0)
    pieces = prompt_pieces(result)
    shift = length - len(b"".join(pieces).decode("utf-8", "ignore"))
    return {
        "tokens": [_spelt(pieces[0]), *own["tokens"]],
        "token_logprobs": [None, *own["token_logprobs"]],
        "top_logprobs": [None, *own["top_logprobs"]],
        "text_offset": [max(0, offset + shift) for offset in _offsets(pieces)],
    }


def prompt_pieces(result: Result) -> list[bytes]:
    """The bytes of each token of a prompt whose log probabilities were asked for."""
    rest = [each for each in result.prompt_logprobs or () if each is not None]
    return [result.prompt_start, *(each.pieces.get(each.id, b"") for each in rest)]


def _offsets(pieces: Sequence[bytes]) -> list[int]:
    """Where each token begins, in characters that are whole before it."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    return [0, *accumulate(len(decoder.decode(piece)) for piece in pieces[:-1])] if pieces else []


def of_prompt(result: Result) -> dict[str, Any]:
    """The field ``prompt_logprobs`` as vLLM has it, if the request asked for it: of each token but the first an object.

    That holds the token and its alternatives by their ids. ``rank`` is None for a token that is not among these.
    """
    if result.prompt_logprobs is None:
        return {}
    return {"prompt_logprobs": [None if each is None else _by_id(each) for each in result.prompt_logprobs]}


def _by_id(logprobs: TokenLogprob) -> dict[str, Any]:
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(_ranked(logprobs), 1)}
    return {
        str(token_id): {"logprob": logprob, "rank": ranks.get(token_id), "decoded_token": _text(logprobs, token_id)}
        for token_id, logprob in {logprobs.id: logprobs.logprob, **logprobs.top}.items()
    }


def _entry(logprobs: TokenLogprob, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _text(logprobs, token_id),
        "logprob": logprob,
        "bytes": list(logprobs.pieces[token_id]) if token_id in logprobs.pieces else None,
    }


def _ranked(logprobs: TokenLogprob) -> list[tuple[int, float]]:
    return sorted(logprobs.top.items(), key=lambda item: -item[1])


def _text(logprobs: TokenLogprob, token_id: int) -> str:
    """A token's text; a part of a character, or a token that an older worker has not spelt, is named as OpenAI does."""
    spelling = logprobs.pieces.get(token_id)
    return f"token_id:{token_id}" if spelling is None else _spelt(spelling)


def _spelt(spelling: bytes) -> str:
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)
