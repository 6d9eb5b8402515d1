"""Tokenising and rendering without a queue: single texts, or JSONL from standard input, one answer for each line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tasks import json_line
from worker.errors import InvalidRequest, OrcdError
from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers
from worker.text.chat_template import ChatTemplate
from worker.text.tokenizer import Tokenizer

Kind = TypeVar("Kind")


class Tokenise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text to tokenise; the two flags are those of `Tokenizer.encode`."""

    text: str
    add_special: bool = True
    parse_special: bool = False


class Render(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Messages to render; ``variables`` are further variables of the template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    variables: dict[str, Any] = {}


def load_tokenizer(model: Path) -> Tokenizer:
    """The tokenizer of a GGUF file. Raises `ModelLoadFailed`."""
    return tokenizers.from_metadata(open_gguf(model).metadata)


def load_template(path: Path) -> ChatTemplate:
    """The chat template of a GGUF file, or a file that is one. Raises `ModelLoadFailed`, `InvalidRequest`."""
    if path.suffix == ".gguf":
        metadata = open_gguf(path).metadata
        template = ChatTemplate.from_metadata(metadata, tokenizers.from_metadata(metadata))
        if template is None:
            raise InvalidRequest(f"{path}: the model has no chat template")
        return template
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"{path}: cannot be read ({reason})") from None


def read_messages(json: bytes) -> Render:
    """The messages of a file that holds a list of them. Raises `InvalidRequest`."""
    try:
        return Render(msgspec.json.decode(json, type=list[dict[str, Any]]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("messages: the file must hold a JSON list of messages") from None


def tokenise(tokenizer: Tokenizer, request: Tokenise) -> dict[str, Any]:
    """The ids, and the text that they stand for, control tokens spelt out."""
    ids = tokenizer.encode(request.text, add_special=request.add_special, parse_special=request.parse_special)
    return {"ids": ids, "text": tokenizer.decode(ids)}


def render(template: ChatTemplate, request: Render) -> dict[str, Any]:
    """The prompt that the messages become."""
    text = template.render(
        request.messages,
        tools=request.tools,
        add_generation_prompt=request.add_generation_prompt,
        variables=request.variables,
    )
    return {"text": text}


def answer_lines(source: Iterable[bytes], kind: type[Kind], answer: Callable[[Kind], Any]) -> Iterator[bytes]:
    """One line of JSON out for each one in: the answer, or ``{"error": message}``. Empty lines are skipped."""
    decoder = msgspec.json.Decoder(kind)
    for text in source:
        if not text.strip():
            continue
        try:
            line = json_line.encode(answer(decoder.decode(text)))
        except OrcdError as error:
            line = json_line.encode({"error": error.message})
        except msgspec.ValidationError as error:
            line = json_line.encode({"error": str(error)})
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            line = json_line.encode({"error": "the line is not valid JSON in UTF-8"})
        yield line
