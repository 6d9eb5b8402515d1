"""An OpenAI batch file with all that people's files have, and what must come of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TEXT = {"type": "text", "text": "What is this?"}
_IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}


@dataclass
class OpenaiBatch:
    """A file of ``num_lines`` lines; of each ten one is broken in one way or another.

    With ``only_chats`` all are for one endpoint, as those of a batch at OpenAI's API have to be.
    ``good`` are the custom_ids of the lines that become requests; ``bad`` those of the others by line number, None
    where the line has none.
    """

    num_lines: int
    long_line_bytes: int = 1 << 20
    only_chats: bool = False
    good: list[str] = field(default_factory=list)
    bad: dict[int, str | None] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """With a byte order mark, and both kinds of line ends."""
        with path.open("wb") as file:
            file.write(b"\xef\xbb\xbf")
            for number in range(1, self.num_lines + 1):
                file.write(self._line(number) + (b"\r\n" if number % 3 else b"\n"))

    def _line(self, number: int) -> bytes:
        line = _good_line(number, 2 if self.only_chats else number % 3)
        custom_id = f"request-{number}"
        match number % 50:
            case 5:
                return self._bad(number, custom_id, json.dumps(line).encode()[:-20])
            case 15:
                return self._bad(number, self.good[-1], json.dumps(line | {"custom_id": self.good[-1]}).encode())
            case 25:
                return self._bad(number, custom_id, json.dumps(line | _chat([_TEXT, _IMAGE])).encode())
            case 35:
                line["body"]["temprature"] = 1
                return self._bad(number, custom_id, json.dumps(line).encode())
            case 45:
                del line["custom_id"]
                return self._bad(number, None, json.dumps(line).encode())
        if number == 7:  # too long for the context
            line |= _chat("rain " * (self.long_line_bytes // 5))
            return self._bad(number, custom_id, json.dumps(line).encode())
        self.good.append(custom_id)
        text = json.dumps(line).encode()
        return text.replace(b"{", b"{" + b" " * self.long_line_bytes, 1) if number == 8 else text

    def _bad(self, number: int, custom_id: str | None, text: bytes) -> bytes:
        self.bad[number] = custom_id
        return text


def _good_line(number: int, kind: int) -> dict[str, Any]:
    """A request of one of three kinds, with the nulls that clients write."""
    subject = f"Write a haiku about number {number}"
    line: dict[str, Any] = {"custom_id": f"request-{number}", "method": "POST"}
    match kind:
        case 0:
            line |= {"url": "/v1/completions", "body": {"prompt": subject, "max_tokens": 4, "logprobs": None}}
        case 1:
            line |= {"url": "/v1/responses", "body": {"input": subject, "max_output_tokens": 4, "instructions": None}}
        case 2:
            line |= _chat(subject if number % 4 else [_TEXT | {"text": subject}])
    line["body"] |= {"model": "haiku-q4_k_m", "temperature": 0}
    return line


def _chat(content: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": content}], "max_completion_tokens": 4}
    return {"url": "/v1/chat/completions", "body": body | {"temperature": 0, "tools": None, "seed": None, "stop": None}}


def answers(output: Path) -> dict[str, Any]:
    """The bodies in an OUTPUT by custom_id, without ids, times, and what was cached. No custom_id may come twice."""
    found: dict[str, Any] = {}
    for line in output.read_text().splitlines():
        record = json.loads(line)
        assert record["custom_id"] not in found
        assert (record["response"]["status_code"], record["error"]) == (200, None)
        found[record["custom_id"]] = _without_ids(record["response"]["body"])
    return found


def failures(errors: Path) -> dict[int, str | None]:
    """The custom_ids in an error file by line number. No line may come twice."""
    found: dict[int, str | None] = {}
    for line in errors.read_text().splitlines():
        record = json.loads(line)
        assert record["line"] not in found
        assert record["error"] or record["response"]["status_code"] >= 400
        found[record["line"]] = record["custom_id"]
    return found


_OF_ONE_RUN = ("id", "created", "created_at", "cached_tokens")


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_ids(inner) for name, inner in value.items() if name not in _OF_ONE_RUN}
    return [_without_ids(inner) for inner in value] if isinstance(value, list) else value
