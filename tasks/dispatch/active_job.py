"""One job in flight: token ids in, events out.

An `ActiveJob` does no I/O and belongs to one thread. What it has handed out as events is what the token log holds; ids
whose text is still held back are forgotten when the engine is lost, and drawn again by whoever goes on.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

import msgspec

from orcd.errors import BY_CODE, OrcdError
from orcd.events import End, Error, Event, Packing, Position, Started, Token, ToolCallDelta, state_after, tool_call_id
from orcd.request import Request, structured_output
from orcd.result import Result, ResultBuilder
from orcd.store.claim import Claim, Lease
from orcd.store.job_store import Append
from orcd.store.token_log import LoggedEvent
from tasks.dispatch.delivery import Done
from tasks.dispatch.engine.held_logprobs import HeldLogprobs
from tasks.dispatch.prompt_encoder import Prompt
from worker import contract
from worker.text.detokenizer import Detokenizer, TextDelta
from worker.text.grammar.whole_document import is_whole
from worker.text.tools.answer_parts import CallDelta


@dataclass(frozen=True, slots=True)
class Termination:
    """An active job shall end with ``error``, or be dropped because it is somebody else's now.

    With ``lease`` only the claim that holds it is meant: the job may have been claimed again meanwhile. With
    ``num_drawn`` it is meant only if the engine has drawn no more tokens since.
    """

    job_id: str
    error: OrcdError | None
    lease: Lease | None = None
    num_drawn: int | None = None

    def concerns(self, job: ActiveJob) -> bool:
        """Whether the job is still as it was when this was said."""
        return self.lease in (None, job.claim.lease) and self.num_drawn in (None, job.num_drawn)


@dataclass(slots=True)
class _Choice:
    """``ids`` were handed out; ``held`` were drawn, but part of their text may yet turn out to be a stop string."""

    index: int
    detokenizer: Detokenizer | None = None
    ids: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    logprobs: HeldLogprobs | None = None
    finish: str | None = None


class ActiveJob:
    """The state of one claimed job, from its claim to its terminal event."""

    def __init__(
        self,
        claim: Claim,
        prompt: Prompt | OrcdError,
        engine: contract.Ready,
        done: Done,
        time_limit_s: float | None = None,
        ageing_s: int = 300,
    ) -> None:
        """``prompt`` is the request in token ids, or the error that ends the job before it has begun.

        ``done`` is for the job's runner to call, once, with what became of the job. ``time_limit_s`` is counted from
        the job's first start; after ``ageing_s`` in the queue it is as urgent as any. ``is_in_engine``: the engine that
        runs now has the job; ``sent_by``: what sent it at its claim; ``num_drawn``: how many tokens were drawn here.
        """
        self.claim = claim
        self.done = done
        self.job_id = claim.job_id
        self.request_id = f"{claim.job_id}#{claim.lease.token}"
        self.time_limit_s = time_limit_s
        self.is_in_engine = False
        self.sent_by: object = None
        self.num_drawn = 0
        self.usage = contract.Usage()
        self._num_withdrawals = 0
        self._cached_tokens: int | None = None  # as the engine said with the first token since the last `add`
        self._has_prompt_logprobs = False
        self.ended, self.text_sha256 = False, ""
        self._prompt = prompt
        readable = claim.request if isinstance(claim.request, Request) else Request()
        self.cancel_on_disconnect = readable.on_disconnect == "cancel"
        self.may_stop = bool(readable.stop) or not readable.parallel_tool_calls
        # As its message does, a job becomes more urgent while it waits.
        waited_ms = max(0, claim.claimed_ms - claim.created_ms)
        self._priority = int(readable.priority * max(0.0, 1.0 - waited_ms / (1000 * ageing_s)))
        self._clock_offset_ms = claim.claimed_ms - time.monotonic() * 1000
        self.first_token_ms = claim.first_token_ms
        self._position = claim.log[-1].position if claim.log else Position()
        self._result = ResultBuilder(claim.job_id)
        self._append = Append(claim.job_id, claim.lease, self._position, packing=claim.packing)
        # A request that cannot be read any more may have had more choices than the log shows by now.
        logged_choices = (logged.event.choice + 1 for logged in claim.log if isinstance(logged.event, Token))
        self._choices = [_Choice(index) for index in range(max(readable.n, *logged_choices, 0))]
        for logged in claim.log:
            self._record(logged.event)
        started = Started(claim.job_id, engine.model, claim.claimed_ms, claim.attempt, fingerprint=engine.fingerprint)
        self._emit(started, 0)
        if isinstance(prompt, OrcdError):
            self.fail(prompt)

    @property
    def num_tokens_in(self) -> int:
        """Length of the prompt; 0 if it could not be read."""
        return 0 if isinstance(self._prompt, OrcdError) else len(self._prompt.ids)

    @property
    def num_tokens_out(self) -> int:
        """Tokens handed out so far, over all choices and owners."""
        return self._position.n

    @property
    def place(self) -> dict[int, int]:
        """How many tokens each choice that has not ended has, handed out or not, by the choice's index."""
        return {choice.index: len(choice.ids) + len(choice.held) for choice in self._choices if choice.finish is None}

    @property
    def result(self) -> Result:
        """What the events so far amount to; complete once the job has ended."""
        held = {choice.index: choice.logprobs for choice in self._choices if choice.logprobs is not None}
        logprobs = {index: taken for index, each in held.items() if (taken := each.taken(self._choices[index].ids))}
        return self._result.result(logprobs, held[0].of_prompt if 0 in held else None)

    def add(self) -> contract.Add | None:
        """What the engine must do to go on from the last event; None if nothing is left to generate.

        Forgets what was drawn and not handed out: the engine draws it again.
        """
        self._cached_tokens = None
        if isinstance(self._prompt, OrcdError) or self._end_if_done():
            return None
        unfinished = [choice for choice in self._choices if choice.finish is None]
        for choice in unfinished:
            choice.held.clear()
            choice.logprobs = choice.logprobs or HeldLogprobs(
                self._prompt, packs=self.claim.packing >= Packing.LOGPROBS
            )
            choice.logprobs.forget_held()
            choice.detokenizer = self._prompt.detokenizer()
            choice.detokenizer.restore(choice.ids)
        sampling = self._prompt.sampling
        if self._has_prompt_logprobs:  # the log has them
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        return contract.Add(
            request_id=self.request_id,
            prompt_ids=tuple(self._prompt.ids),
            sampling=sampling,
            choices=tuple(contract.Choice(choice.index, tuple(choice.ids)) for choice in unfinished),
            priority=self._priority,
            grammar=self._prompt.grammar,
        )

    def withdraw(self) -> contract.Abort:
        """Take the job out of the engine: what comes of its request from now on is not of this job any more."""
        abort = contract.Abort(self.request_id)
        self._num_withdrawals += 1
        self.request_id = f"{self.job_id}#{self.claim.lease.token}.{self._num_withdrawals}"
        self.is_in_engine = False
        return abort

    def process(self, output: contract.TokenOutput) -> contract.Abort | None:
        """Turn one engine output into events; returns what the engine should stop, if a stop string was found."""
        choice = self._choices[output.choice]
        if self.ended or choice.finish is not None:
            return None
        if output.finish_reason == "error":
            error = BY_CODE.get(output.error_code or "", OrcdError)
            self.fail(error(output.error_message or "the engine gave no reason"))
            return contract.Abort(self.request_id)
        assert choice.detokenizer and choice.logprobs and isinstance(self._prompt, Prompt), "add() comes first"
        self.num_drawn += len(output.ids)
        self.usage = self.usage.plus(output.usage)
        if output.ids and self._cached_tokens is None:
            self._cached_tokens = output.cached_tokens
        choice.held += output.ids
        choice.logprobs.add(output)
        delta = choice.detokenizer.feed(output.ids)
        self._release(choice, delta)
        if delta.stopped:
            choice.finish = "stop"
        elif output.finish_reason is not None:
            self._release(choice, choice.detokenizer.finish())
            has_ended = self._prompt.grammar and self._result.has_whole_calls(choice.index)
            choice.finish = "stop" if has_ended else output.finish_reason  # at its limit, by the grammar
        if choice.finish is None:
            return None
        if len(self._choices) > 1:  # with one choice the end event says it
            self._emit(Token("", len(choice.ids) + 1, [], choice.index, finish=choice.finish), 0)
        self._end_if_done()
        return contract.Abort(self.request_id, choice.index) if delta.stopped and output.finish_reason is None else None

    def fail(self, error: OrcdError) -> None:
        """End the job without success."""
        if not self.ended:
            self._emit(Error(error.code, error.message, error.retriable), 0)

    def discard(self, error: OrcdError) -> None:
        """End the job with ``error`` alone: its log cannot be written, so nothing else of it counts."""
        self._result, self.ended = ResultBuilder(self.job_id), False
        self.fail(error)

    def take_append(self) -> Append:
        """The events since the last call, for the token log."""
        append = self._append
        self._append = Append(self.job_id, self.claim.lease, self._position, packing=self.claim.packing)
        return append

    def now_ms(self) -> int:
        """The time on the Redis clock, as far as it was known at the claim."""
        return round(time.monotonic() * 1000 + self._clock_offset_ms)

    def _release(self, choice: _Choice, delta: TextDelta) -> None:
        if not delta.num_ids:
            return
        assert choice.logprobs is not None, "add() comes before process()"
        ids, choice.held = choice.held[: delta.num_ids], choice.held[delta.num_ids :]
        if self.first_token_ms is None:
            self.first_token_ms = self.now_ms()
        token = Token(
            t=delta.text,
            i=len(choice.ids) + 1,
            ids=ids,
            choice=choice.index,
            analysis=delta.analysis,
            commentary=delta.commentary,
            tool_calls=[self._call(choice.index, call) for call in delta.calls] or None,
            **choice.logprobs.take(ids),
        )
        self._emit(token, len(ids))

    def _call(self, choice: int, call: CallDelta) -> ToolCallDelta:
        call_id = tool_call_id(self.job_id, choice, call.index) if call.name else ""
        return ToolCallDelta(call.index, call_id, call.name, call.arguments)

    def _end_if_done(self) -> bool:
        if self.ended or any(choice.finish is None for choice in self._choices):
            return self.ended
        first_ms = self.first_token_ms or self.now_ms()
        self.text_sha256 = hashlib.sha256("".join(self._result.texts).encode()).hexdigest()
        self._emit(
            End(
                finish_reason=self._choices[0].finish or "stop",
                tokens_in=self.num_tokens_in,
                tokens_out=self._position.n,
                queue_ms=self.claim.started_ms - self.claim.created_ms,
                ttft_ms=max(0, first_ms - self.claim.started_ms),
                decode_ms=max(0, self.now_ms() - first_ms),
                text_sha256=self.text_sha256,
                schema_valid=self._is_whole(),
                cached_tokens=self._cached_tokens or 0,
            ),
            0,
        )
        return True

    def _is_whole(self) -> bool | None:
        """Whether every answer is a whole document of the form asked for; None if any would do, or all are calls."""
        request = self.claim.request
        output = structured_output(request) if isinstance(request, Request) else None
        if output is None:
            return None
        stops = isinstance(request, Request) and bool(request.stop)
        ends = [choice.finish == "stop" and not stops for choice in self._choices]
        answers = zip(self._result.texts, self._result.have_calls, ends, strict=True)
        found = [is_whole(output.kind, text, ended=end) for text, has_calls, end in answers if not has_calls]
        return all(found) if found else None

    def _emit(self, event: Event, num_tokens: int) -> None:
        self._position = self._position.after(num_tokens)
        self._append.events.append(LoggedEvent(self._position, event))
        if not isinstance(event, Token):
            self._append.final_state = state_after(event)
        self._record(event)

    def _record(self, event: Event) -> None:
        self._result.add(event)
        match event:
            case Token(ids=ids, choice=index, finish=finish):
                self._choices[index].ids += ids
                self._choices[index].finish = finish
                self._has_prompt_logprobs |= bool(event.prompt_logprobs or event.packed_prompt_logprobs)
            case End() | Error():
                self.ended = True


def job_id_of(request_id: str) -> str:
    """The job whose `ActiveJob.request_id` this is. It names the claim too: an engine may still speak of the last."""
    return request_id.rpartition("#")[0]
