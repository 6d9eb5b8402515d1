"""What a job produced, folded from its events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from orcd.errors import BY_CODE, OrcdError
from orcd.events import End, Error, Event, Queued, Started, Token, TokenLogprob, ToolCallDelta, state_after


class ToolCall(msgspec.Struct, frozen=True):
    """One call. ``arguments`` are JSON as the model wrote it, which may be invalid, or cut short with the answer."""

    id: str
    name: str
    arguments: str


class Choice(msgspec.Struct, frozen=True):
    """One continuation.

    ``reasoning`` is what the model thought before it answered, ``tool_calls`` are the calls of tools that it wrote, and
    ``commentary`` is what GPT-OSS wrote beside them; None if it wrote none. ``finish_reason`` is None while the choice
    goes on, or when the job ended before it did. ``logprobs`` has one entry a token, or is None if the request asked
    for none.
    """

    text: str = ""
    token_ids: list[int] = []
    finish_reason: str | None = None
    reasoning: str | None = None
    commentary: str | None = None
    logprobs: Sequence[TokenLogprob] | None = None
    tool_calls: list[ToolCall] | None = None


class Result(msgspec.Struct, frozen=True):
    """A job's outcome; ``error`` is set unless it succeeded. Times in milliseconds, see `orcd.events.End`.

    ``tokens_in`` and the times are 0 unless the job succeeded; what a failed job had generated is in ``choices``.
    ``model`` is the name of the model that answered, None if the job never ran. ``fingerprints`` names the model files
    and kinds of devices that the tokens come from, in order: more than one means that the answer was begun under
    another one than it was finished under. ``schema_valid`` is as in `orcd.events.End`, None unless the job succeeded.
    ``prompt_logprobs`` has an entry for each token of the prompt, None for the first one, which nothing comes before;
    it is None if the request asked for none. ``prompt_start`` are the bytes of that first token. ``cached_tokens`` is
    how many of ``tokens_in`` were in the prefix cache.
    """

    job_id: str
    state: str
    choices: list[Choice] = []
    tokens_in: int = 0
    tokens_out: int = 0
    queue_ms: int = 0
    ttft_ms: int = 0
    decode_ms: int = 0
    error: Error | None = None
    model: str | None = None
    fingerprints: list[str] = []
    schema_valid: bool | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    cached_tokens: int = 0
    prompt_start: bytes = b""

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text if self.choices else ""

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended (``stop``, ``length``); None if the job ended before it did."""
        return self.choices[0].finish_reason if self.choices else None

    def raise_for_error(self) -> Result:
        """The result itself if the job succeeded. Raises the job's error as the exception with its code otherwise."""
        if self.error is not None:
            raise exception(self.error)
        return self

    def __json__(self) -> dict[str, Any]:
        """Plain values: this is how kombu's encoder stores the result in Celery's backend."""
        plain: dict[str, Any] = msgspec.to_builtins(self, str_keys=True, enc_hook=list)  # a worker's log probabilities
        return plain

    def __repr__(self) -> str:
        # Celery sends the representation to Flower and to logs, where no answer may appear.
        if self.error is not None:
            return f"<Result {self.job_id} {self.state} error={self.error.code} tokens_out={self.tokens_out}>"
        figures = {
            "model": self.model,
            "finish_reason": self.finish_reason,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "tokens_per_s": round((self.tokens_out - 1) * 1000 / self.decode_ms, 1) if self.decode_ms else None,
            "queue_ms": self.queue_ms,
            "first_token_ms": self.ttft_ms,
            "choices": len(self.choices),
        }
        shown = " ".join(f"{name}={value}" for name, value in figures.items() if value is not None)
        return f"<Result {self.job_id} {self.state} {shown}>"


class ResultBuilder:
    """Folds a job's events, each given once and in order, into a `Result`."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._state = "queued"
        self._choices: defaultdict[int, _ChoiceBuilder] = defaultdict(_ChoiceBuilder)
        self._end: End | None = None
        self._error: Error | None = None
        self._model: str | None = None
        self._fingerprints: dict[str, None] = {}
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        self._prompt_start = b""

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Token(choice=choice):  # first, as there are many of these
                self._choices[choice].add(event)
                self._prompt_logprobs = event.prompt_logprobs or self._prompt_logprobs
                self._prompt_start = event.prompt_start or self._prompt_start
                return
            case Queued():
                self._state = "queued"
            case Started(model=model, fingerprint=fingerprint):
                self._state = "running"
                self._model = model
                if fingerprint:
                    self._fingerprints[fingerprint] = None
            case End(finish_reason=finish_reason):
                self._end = event
                self._choices[0].finish_reason = finish_reason
            case Error():
                self._error = event
        self._state = state_after(event) or self._state

    @property
    def texts(self) -> list[str]:
        """Those of the choices' answers so far."""
        return [self._choices[index].text for index in sorted(self._choices)]

    @property
    def have_calls(self) -> list[bool]:
        """Whether the choices' answers have calls of tools."""
        return [self._choices[index].has_calls for index in sorted(self._choices)]

    def has_whole_calls(self, index: int) -> bool:
        """Whether a choice's answer has calls of tools, and the arguments of all are whole."""
        return self._choices[index].has_whole_calls

    def result(
        self,
        logprobs: Mapping[int, Sequence[TokenLogprob]] | None = None,
        prompt_logprobs: list[TokenLogprob | None] | None = None,
    ) -> Result:
        """The result so far. ``logprobs`` by choice, and those of the prompt, are what the events had packed."""
        packed = logprobs or {}
        choices = [self._choices[index].choice(packed.get(index, ())) for index in sorted(self._choices)]
        prompt_logprobs = prompt_logprobs or self._prompt_logprobs
        fingerprints = list(self._fingerprints)
        if self._end is None:
            return Result(
                self._job_id,
                self._state,
                choices,
                tokens_out=sum(len(choice.token_ids) for choice in choices),
                error=self._error,
                model=self._model,
                fingerprints=fingerprints,
                prompt_logprobs=prompt_logprobs,
                prompt_start=self._prompt_start,
            )
        end = self._end
        return Result(
            self._job_id,
            self._state,
            choices,
            tokens_in=end.tokens_in,
            tokens_out=end.tokens_out,
            queue_ms=end.queue_ms,
            ttft_ms=end.ttft_ms,
            decode_ms=end.decode_ms,
            model=self._model,
            fingerprints=fingerprints,
            schema_valid=end.schema_valid,
            prompt_logprobs=prompt_logprobs,
            cached_tokens=end.cached_tokens,
            prompt_start=self._prompt_start,
        )


class _ChoiceBuilder:
    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._commentary: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._tool_calls: list[ToolCallDelta] = []
        self.finish_reason: str | None = None

    def add(self, event: Token) -> None:
        self._text.append(event.t)
        self._reasoning.append(event.analysis)
        self._commentary.append(event.commentary)
        self._token_ids += event.ids
        self._logprobs += event.logprobs or []
        self._tool_calls += event.tool_calls or []
        self.finish_reason = event.finish or self.finish_reason

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def has_calls(self) -> bool:
        return bool(self._tool_calls)

    @property
    def has_whole_calls(self) -> bool:
        try:
            return bool([msgspec.json.decode(call.arguments) for call in _joined(self._tool_calls)])
        except (msgspec.DecodeError, RecursionError):
            return False

    def choice(self, packed: Sequence[TokenLogprob]) -> Choice:
        """``packed`` log probabilities are those of the last tokens."""
        return Choice(
            text=self.text,
            token_ids=self._token_ids.copy(),
            finish_reason=self.finish_reason,
            reasoning="".join(self._reasoning) or None,
            commentary="".join(self._commentary) or None,
            logprobs=([*self._logprobs, *packed] if self._logprobs else packed) or None,
            tool_calls=_joined(self._tool_calls) or None,
        )


def _joined(deltas: Iterable[ToolCallDelta]) -> list[ToolCall]:
    """The calls that all deltas of a choice add up to, by index."""
    names: dict[int, tuple[str, str]] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        names.setdefault(delta.index, (delta.id, delta.name))
        arguments.setdefault(delta.index, []).append(delta.arguments)
    return [ToolCall(*names[index], "".join(arguments[index])) for index in sorted(names)]


def fold(job_id: str, events: Iterable[Event]) -> Result:
    """The result that ``events`` add up to."""
    builder = ResultBuilder(job_id)
    for event in events:
        builder.add(event)
    return builder.result()


def exception(error: Error) -> OrcdError:
    """The error of a job as the exception with its code; a code of a newer worker becomes a plain `OrcdError`."""
    return BY_CODE.get(error.code, OrcdError)(error.message)
