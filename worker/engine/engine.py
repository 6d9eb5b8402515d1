"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable

from kernels.devices.protocol import is_gpu
from orcd.errors import CudaError, InvalidRequest, OrcdError
from worker.contract import Abort, Add, Stats, TokenOutput
from worker.engine.cohort import Draw, StepInFlight
from worker.engine.engine_stats import TokenCounts, engine_stats
from worker.engine.logits.constrained_draws import TakenDraws
from worker.engine.logits.forced_tokens import append_forced
from worker.engine.logits.late_draws import LateDraws
from worker.engine.logits.open_step import OpenStep, awaits_tokens
from worker.engine.output_buffer import OutputBuffer
from worker.engine.runner import PromptReport, Result, Results, Runner, run_alone
from worker.engine.runners.in_flight_file import InFlightFile
from worker.engine.runners.noting_runner import NotingRunner
from worker.engine.runners.open_runner import RunnerSize, open_runner
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Chunk, Sequence
from worker.engine.sequence_builder import SequenceBuilder
from worker.engine.token_constraint import TokenConstraint
from worker.engine.validation import error_output, last_output, refusal, step_error
from worker.model.kv_cache import num_cache_blocks, num_state_slots
from worker.model.registry import Model
from worker.settings import Settings


class Engine:
    """Continuous batching over one model.

    `add` and `abort` take effect with the next `step`, whose outputs also answer requests that were refused. A step is
    plan, launch, collect; as many as the runner's depth are in flight, so that the device need not wait for the host.
    What a step in flight computes for a sequence that has ended meanwhile is dropped. Sequences of one request share
    the blocks of its prompt, and with ``settings.prefix_cache`` different requests share equal prefixes too. Nothing
    here logs or knows the time.
    """

    def __init__(self, model: Model, settings: Settings, *, capture: bool = True) -> None:
        """Allocates the cache; raises `InsufficientVram` or `InvalidRequest` when the settings leave no room.

        ``capture`` False: no CUDA graphs, with the same results.
        """
        block_tokens = settings.kv_block_tokens
        most = model.config.context_length
        self.context_length = settings.context_length or most
        if self.context_length > most:
            raise InvalidRequest(f"context_length is {self.context_length}, but the model's ends at {most}")
        num_blocks = num_cache_blocks(model.bytes_per_block(block_tokens), settings, self.context_length)
        num_states = num_state_slots(model.bytes_per_state, settings, num_blocks)
        self._recompute_at = model.recompute_at
        self._builder = SequenceBuilder(
            vocab_size=model.config.vocab_size,
            context_length=self.context_length,
            cache_tokens=num_blocks * block_tokens,
            recompute_at=model.recompute_at,
            prefix_cache=settings.prefix_cache,
        )
        self.max_sequence_tokens = self._builder.max_sequence_tokens
        """Most tokens that prompt and output of one choice can have together."""
        self._scheduler = Scheduler(
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            step_tokens=settings.step_tokens,
            max_sequences=settings.max_sequences,
            recompute_at=model.recompute_at,
            rewrites_blocks=is_gpu(model.device),
            num_states=num_states,
        )
        size = RunnerSize(num_blocks, num_states, self.max_sequences, self.max_sequence_tokens)
        self._runner: Runner = open_runner(model, settings, size, capture=capture)
        self._in_flight: deque[StepInFlight] = deque()
        self._open: OpenStep | None = None  # the last one in flight, if its draws are still to come
        self._late = LateDraws()
        self._requests: dict[str, list[Sequence]] = {}  # the live sequences of each request
        self._answers: list[TokenOutput] = []  # what the next step emits without computing anything
        self.outputs = OutputBuffer()  # what steps have emitted
        self._counts = TokenCounts()

    def note_in_flight(self, file: InFlightFile) -> None:
        """From now on ``file`` says which requests the steps in flight are about."""
        self._runner = NotingRunner(self._runner, file, self._late)

    @property
    def max_sequences(self) -> int:
        """Most sequences that run in one step."""
        return self._scheduler.max_running

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do, if only to wait for what is still in flight."""
        return bool(self._requests or self._in_flight or self._answers)

    def add(self, add: Add, constraint: TokenConstraint | None = None) -> None:
        """Queue a request. One that cannot run is answered by error outputs of the next step, one for each choice.

        ``constraint`` is what its grammar was compiled to; each choice gets a copy.
        """
        try:
            sequences = self._builder.build(add, constraint)
            if add.request_id in self._requests:
                raise InvalidRequest("request_id belongs to a request that is still running")
        except OrcdError as error:
            self.answer(refusal(add, error))
            return
        self._answers += [last_output(sequence) for sequence in sequences if sequence.finish_reason is not None]
        live = [sequence for sequence in sequences if sequence.finish_reason is None]
        for sequence in live:
            self._scheduler.add(sequence)
        if live:
            self._requests[add.request_id] = live
            self._counts.num_prompt += len(add.prompt_ids)

    def answer(self, outputs: Iterable[TokenOutput]) -> None:
        """Have the next step return these, too: the last outputs of choices that nothing is computed for."""
        self._answers += outputs

    def abort(self, abort: Abort) -> None:
        """End one choice of a request or all of them; unknown ones are ignored."""
        for sequence in list(self._requests.get(abort.request_id, ())):
            if abort.choice in (None, sequence.choice):
                sequence.finish_reason = "abort"
                self._forget(sequence)
                self._answers.append(last_output(sequence))

    def step(self) -> list[TokenOutput]:
        """`advance`, and take all that was emitted."""
        self.advance()
        return self.outputs.take_all()

    def advance(self) -> None:
        """Launch what can be launched, wait for the oldest step in flight and put what it emitted into ``outputs``.

        A request that the model fails on ends with an error output, the others go on. Raises `CudaError` when the
        device is lost, and whatever the model raised when it failed on every request of several.
        """
        answers, self._answers = self._answers, []
        self.outputs.answer(answers)
        self._launch_all(answers)
        self._scheduler.finish_launch()
        if self._in_flight:
            self._collect()
            if self._open is not None:
                chunks = self._scheduler.plan(ahead=1)  # before, so that the device soon has work behind these draws
                if self._draw(self._open):
                    self._launch_all((), chunks)
            if self._late:
                self._launch_all(())  # first, so that the device has work
                for sequence, result in self._late.take(self._runner.has_time):
                    self._do(sequence, result)

    def stats(self, *, memory_bytes: int) -> Stats:
        """Counters since the start and gauges of this moment."""
        return engine_stats(self._scheduler, self._counts, memory_bytes=memory_bytes)

    def check_invariants(self) -> None:
        """The live sequences are exactly those that the scheduler holds, and its bookkeeping agrees."""
        self._scheduler.check_invariants()
        held = self._scheduler.running + self._scheduler.waiting
        assert {id(each) for sequences in self._requests.values() for each in sequences} == set(map(id, held))
        assert all(self._requests.values()), "a request without sequences"
        drawing = Counter(id(chunk.sequence) for step in self._in_flight for chunk in step.chunks if chunk.draws)
        for sequence in held:
            num_to_come = drawing.get(id(sequence), 0) + sequence.is_late
            assert sequence.num_unread == num_to_come, "an unread token that nobody draws"

    def _launch_all(self, answers: Collection[TokenOutput], planned: list[Chunk] | None = None) -> None:
        """Launch as many steps as may be in flight, and none behind one that is still to be drawn from."""
        if not self._in_flight:
            for sequence, result in self._late.take():
                self._do(sequence, result)
        while self._open is None and (ahead := len(self._in_flight)) < self._runner.depth:
            chunks, planned = planned or self._scheduler.plan(ahead=ahead, depth=self._runner.depth), None
            assert chunks or self._in_flight or answers or not self._requests, "live requests that cannot go on"
            if not chunks or not self._launch(chunks):
                break

    def _launch(self, chunks: list[Chunk]) -> bool:
        """Launch a step. False: it failed, and now nothing is in flight."""
        is_open = self._scheduler.num_constrained > 0 and awaits_tokens(chunks)
        try:
            self._runner.launch(chunks, draws=not is_open)
        except CudaError:
            raise
        except Exception as error:
            self._run_apart(chunks, error)
            return False
        self._in_flight.append(self._scheduler.launch(chunks))
        self._open = OpenStep(self._in_flight[-1]) if is_open else None
        return True

    def _draw(self, step: OpenStep) -> bool:
        """Have a step drawn from, as the tokens before it are known. False: it failed, and nothing is in flight."""
        assert len(self._in_flight) == 1, "a step before the one that is drawn from"
        self._open = None
        try:
            self._runner.draw(step.void)
        except CudaError:
            raise
        except Exception as error:
            self._in_flight.pop()
            self._scheduler.disband()
            self._run_apart(step.take_back(), error)
            return False
        return True

    def _run_apart(self, chunks: list[Chunk], error: Exception) -> None:
        """Run the chunks of a step that failed with ``error`` one by one, so that only those fail that must.

        Running a chunk again is harmless: it writes the same keys and values to the same places.
        """
        while self._in_flight:
            self._collect()
        self._scheduler.disband()
        alone = [chunk for chunk in chunks if chunk.is_due()]
        results = [run_alone(self._runner, chunk) for chunk in alone] if len(chunks) > 1 else [step_error(error)]
        if len(alone) > 1 and all(isinstance(result, OrcdError) for result in results):
            raise error
        for chunk, result in zip(alone, results, strict=False):
            failed = isinstance(result, OrcdError)
            self._commit(StepInFlight(0, [], [chunk]) if failed else self._scheduler.launch([chunk]), [result])

    def _collect(self) -> None:
        """Wait for the oldest step in flight and do what its results ask for."""
        self._commit(self._in_flight.popleft(), self._runner.collect())

    def _commit(self, step: StepInFlight, results: Results) -> None:
        """Append what a step drew, and what that leads to."""
        taken, left_out = TakenDraws(results), list[Sequence]()
        has_states, num_constrained = self._scheduler.cache.state_slots is not None, self._scheduler.num_constrained
        if num_constrained:
            is_minority = 2 * num_constrained < len(self._scheduler.running)
            may_be_late = is_minority and self._open is not None and not has_states
            taken = self._late.take_draws(step.chunks, results, self._runner.has_time if may_be_late else None)
            self._scheduler.set_apart(taken.others)
            if taken.others and self._open is not None:
                left_out = self._open.leave_out(taken.others)
                self._in_flight[-1] = self._open.step
        num_appended, left, filling = self._scheduler.cohort.append(step, taken.results, taken.ended)
        self._scheduler.cache.block_tables.publish_all_later(filling)
        self._counts.num_output += num_appended
        self.outputs.add_all(step.members)
        for sequence, result in left:
            self._do(sequence, result)
        if has_states:
            for sequence in left_out:  # the open step has overwritten the state that it would go on from
                if sequence.is_running:
                    self._scheduler.restart(sequence, sequence.hash_root)

    def _do(self, sequence: Sequence, result: Result) -> None:
        """What a ``result`` of its step asks for."""
        if isinstance(result, PromptReport):
            assert sequence.prompt_logprobs is not None, "log probabilities that nobody wants"
            sequence.prompt_logprobs += result.logprobs
            result = result.rest
        if isinstance(result, int):
            self._append(sequence, result, None)
        elif isinstance(result, Draw):
            self._append(sequence, result.token_id, result.logprobs)
        elif result is not None:
            self._fail(sequence, result)

    def _append(self, sequence: Sequence, token_id: int, logprobs: bytes | None) -> None:
        """Add to a sequence what was drawn, and what must follow that."""
        self._scheduler.append(sequence, token_id)
        self.outputs.add(sequence, logprobs)
        self._counts.num_output += 1
        error = None
        if sequence.takes_forced and not sequence.num_unread:
            forced_ids, error = append_forced(sequence, self._scheduler)
            if forced_ids:
                self.outputs.add(sequence)
            self._counts.num_output += len(forced_ids)
            self._counts.num_forced += len(forced_ids)
        if sequence.finish_reason is not None:
            self._forget(sequence)
        elif self._recompute_at is not None and sequence.outgrows(self._recompute_at):
            self._scheduler.restart(sequence, self._builder.hash_root(sequence.request_id, sequence.num_tokens))
        if error is not None:
            self._fail(sequence, error)

    def _fail(self, sequence: Sequence, error: OrcdError) -> None:
        sequence.finish_reason = "error"
        self._forget(sequence)
        self.outputs.answer([error_output(sequence.request_id, sequence.choice, error)])

    def _forget(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        live = self._requests[sequence.request_id]
        live.remove(sequence)
        if not live:
            del self._requests[sequence.request_id]
