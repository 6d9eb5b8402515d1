"""``orcd render``: the prompt that a chat template makes of messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from orcd.errors import InvalidRequest
from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers
from worker.text.chat_template import ChatTemplate
from worker.text.process.text_process import TextProcess


class RenderRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Messages to render; ``variables`` are further variables of the template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    variables: dict[str, Any] = {}

    @classmethod
    def from_messages(cls, json: bytes) -> RenderRequest:
        """The request of a file that holds nothing but a list of messages. Raises `InvalidRequest`."""
        try:
            return cls(msgspec.json.decode(json, type=list[dict[str, Any]]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvalidRequest("messages: the file must hold a JSON list of messages") from None


class RenderCommand:
    """Answers requests with the chat template of a GGUF file, or with a file that is one.

    As in a worker, what rendering may take is limited. Raises `ModelLoadFailed` or `InvalidRequest` where there is no
    template. `close` it.
    """

    def __init__(self, template: Path) -> None:
        self._process = TextProcess(
            _model_template(template) if template.suffix == ".gguf" else _file_template(template)
        )

    def close(self) -> None:
        """End the process that renders."""
        self._process.close()

    def answer(self, request: RenderRequest) -> dict[str, Any]:
        """The prompt that the messages become. Raises `InvalidRequest`."""
        text = self._process.render(
            request.messages,
            tools=request.tools,
            add_generation_prompt=request.add_generation_prompt,
            variables=request.variables,
        )
        return {"text": text}


def _model_template(model: Path) -> ChatTemplate:
    metadata = open_gguf(model).metadata
    template = ChatTemplate.from_metadata(metadata, tokenizers.from_metadata(metadata))
    if template is None:
        raise InvalidRequest(f"{model}: the model has no chat template")
    return template


def _file_template(path: Path) -> ChatTemplate:
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"{path}: cannot be read ({reason})") from None
