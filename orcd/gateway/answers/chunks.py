"""Token logs of jobs as the chunks of a streamed completion (OpenAI's chat and legacy completions).

Of one job, like `orcd.gateway.answers.response_events`, a function of the log alone, so that a client can go on behind
any chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orcd.events import End, Event, Started, Token
from orcd.openai import logprobs
from orcd.openai.chat import call_delta, finish_reason
from orcd.openai.usage import usage


class Chunks:
    """Makes the chunks of one answer; feed it each event of its jobs' logs from the first on.

    ``num_choices`` are those of each job. ``echoes`` are, for each, the prompt where its answers begin with it.
    `num_tokens` counts those of the events so far, over all choices.
    """

    def __init__(
        self,
        job_id: str,
        model: str,
        *,
        is_chat: bool,
        include_usage: bool,
        num_choices: int,
        echoes: Sequence[str] = ("",),
    ) -> None:
        self.num_tokens = 0
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{job_id}" if is_chat else f"cmpl-{job_id}",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": 0,
            "model": model,
            "system_fingerprint": None,
        }
        self._is_chat = is_chat
        self._include_usage = include_usage
        self._num_choices = num_choices
        self._echoes = echoes
        self._lengths = [len(echo) for echo in echoes for _ in range(num_choices)]
        self._has_calls = [False] * len(self._lengths)
        self._has_begun = [False] * len(echoes)
        self._ends: list[End] = []

    def feed(self, event: Event, job: int = 0) -> list[dict[str, Any]]:
        """What the next event adds, of the log of the job with this index."""
        match event:
            case Started():
                self._head["system_fingerprint"] = event.fingerprint or self._head["system_fingerprint"]
                if not self._head["created"]:
                    self._head |= {"created": event.started_at // 1000, "model": event.model}
                if not self._has_begun[job]:
                    self._has_begun[job] = True
                    return self._begin(job)
            case Token():
                self.num_tokens += len(event.ids)
                return self._tokens(event, job * self._num_choices + event.choice)
            case End():
                return self._end(event, job)
        return []

    def _begin(self, job: int) -> list[dict[str, Any]]:
        text = self._echoes[job]
        if not (self._is_chat or text):
            return []
        delta = {"role": "assistant", "content": ""} if self._is_chat else text
        return [self._chunk(job * self._num_choices + choice, delta) for choice in range(self._num_choices)]

    def _tokens(self, event: Token, choice: int) -> list[dict[str, Any]]:
        start, self._lengths[choice] = self._lengths[choice], self._lengths[choice] + len(event.t)
        said = None
        if event.logprobs and self._is_chat:
            said = {"content": logprobs.listed(event.logprobs), "refusal": None}
        elif event.logprobs:
            said = logprobs.columns(event.logprobs, start)
        delta: Any = event.t
        if self._is_chat:
            calls = [call_delta(call) for call in event.tool_calls or ()]
            self._has_calls[choice] |= bool(calls)
            parts = {"reasoning_content": event.analysis, "content": event.t, "tool_calls": calls}
            delta = {name: part for name, part in parts.items() if part}
        if not (delta or said or event.finish):
            return []
        return [self._chunk(choice, delta, event.finish, said)]

    def _end(self, end: End, job: int) -> list[dict[str, Any]]:
        self._ends.append(end)
        chunks = []
        if self._num_choices == 1:  # with more, each choice's last token event has said it
            chunks.append(self._chunk(job, {} if self._is_chat else "", end.finish_reason))
        if self._include_usage and len(self._ends) == len(self._echoes):
            chunks.append({**self._head, "choices": [], "usage": usage(*self._ends)})
        return chunks

    def _chunk(self, choice: int, delta: Any, finish: str | None = None, said: Any = None) -> dict[str, Any]:
        text = {"delta" if self._is_chat else "text": delta}
        reason = finish_reason(finish, has_calls=self._has_calls[choice])
        chosen = {"index": choice, **text, "logprobs": said, "finish_reason": reason}
        return {**self._head, "choices": [chosen], **({"usage": None} if self._include_usage else {})}
