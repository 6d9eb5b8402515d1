"""A device that does nothing before somebody waits for it: what the host must not know yet, it cannot know."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from msgspec.structs import replace

from kernels.batch import GreedyDraw, StateRows, Step
from kernels.errors import CudaFailure
from kernels.reference import decode_step, sampling
from kernels.runtime.gpu_spec import H100
from tests.worker.engine.context_model import ContextModel

OPS = (
    decode_step.begin_decode,
    decode_step.resolve_tokens,
    sampling.sample,
    sampling.reset_edits,
    sampling.mask_logits,
    sampling.top_log_probabilities,
)


class LateDevice:
    """Enqueues what `kernels.devices.cuda.CudaDevice` enqueues, on NumPy arrays."""

    name = "late:0"
    gpu = H100

    def __init__(self, seed: int = 0) -> None:
        self._queue: list[Callable[[], object]] = []
        self._done = 0
        self._generator = np.random.default_rng(seed)
        self.step_buffers = SimpleNamespace(allocate=self._garbage)
        self.ops = SimpleNamespace(**{op.__name__: self._later(op) for op in OPS})
        self.num_uploads = 0
        self.num_allocations = 0
        self.uploads_left: int | None = None  # before one raises
        self.hangs = False

    def enqueue(self, work: Callable[[], object]) -> None:
        self._queue.append(work)

    def run_until(self, end: int) -> None:
        """Do what was enqueued before ``end``, in order."""
        while self._done < end:
            self._done += 1
            self._queue[self._done - 1]()

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._garbage(shape, dtype)

    def copy_to_device_async(self, target: np.ndarray, source: np.ndarray) -> None:
        assert target.nbytes == source.nbytes
        self.num_uploads += 1
        if self.uploads_left is not None:
            self.uploads_left -= 1
            if self.uploads_left < 0:
                self.uploads_left = None
                raise ValueError("secret")
        self.enqueue(lambda: np.copyto(target, source))

    def uploader(self, source: np.ndarray) -> Callable[[np.ndarray], None]:
        return lambda target: self.copy_to_device_async(target, source[: target.nbytes])

    def copy_to_host_async(self, target: np.ndarray, source: np.ndarray) -> None:
        assert target.nbytes == source.nbytes
        self.enqueue(lambda: np.copyto(target, source))

    def event(self) -> LateEvent:
        return LateEvent(self)

    def capture(self, enqueue: Callable[[], None], name: str) -> SimpleNamespace:
        outside, self._queue = self._queue, []
        try:
            enqueue()
            captured = self._queue
        finally:
            self._queue = outside
        return SimpleNamespace(name=name, launch=lambda: self._queue.extend(captured))

    def record(self, enqueue: Callable[[], None]) -> SimpleNamespace:
        return self.capture(enqueue, "")

    def _later(self, op: Callable[..., Any]) -> Callable[..., None]:
        return lambda *arguments, **options: self.enqueue(lambda: op(*arguments, **options))

    def _garbage(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        self.num_allocations += 1
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        array = np.frombuffer(bytearray(self._generator.bytes(num_bytes)), np.uint8).view(dtype).reshape(shape)
        return array if array.dtype.kind in "uV" else np.minimum(array, 5)  # garbage, but of an index no wild one


class LateEvent:
    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self._end = 0

    def record(self) -> None:
        self._end = len(self._device._queue)

    def synchronise(self, timeout_s: float) -> None:
        if self._device.hangs:
            raise CudaFailure("late_kernel", f"not done after {timeout_s:g} s")
        self._device.run_until(self._end)


class LateModel:
    """`ContextModel` on a `LateDevice`."""

    def __init__(self, model: ContextModel | None = None, *, seed: int = 0) -> None:
        self.model = model or ContextModel()
        self.config, self.recompute_at = self.model.config, self.model.recompute_at
        self.one_kernel_contexts = {1: 24, 2: 16}
        self.device = LateDevice(seed)
        self.bytes_per_state = self.model.bytes_per_state
        self.draws_in_one_kernel = not self.bytes_per_state  # what one kernel runs has no recurrent layers
        self.bytes_per_block, self.allocate_cache = self.model.bytes_per_block, self.model.allocate_cache

    def forward(self, step: Step, cache: np.ndarray) -> np.ndarray:
        logits = np.full((step.logit_rows.shape[0], self.config.vocab_size), np.nan, np.float32)
        if step.greedy is not None and step.greedy.output_positions is not None:
            self.device.enqueue(lambda: decode_step.continue_rows(step, self.model.block_tokens))
        self.device.enqueue(lambda: self._compute(step, cache, logits))
        if step.greedy is not None:
            self.device.enqueue(lambda: self._draw(logits, step.greedy))
        return logits

    def _draw(self, logits: np.ndarray, greedy: GreedyDraw) -> None:
        sampling.draw_greedily(logits, greedy)

    def _compute(self, step: Step, cache: np.ndarray, logits: np.ndarray) -> None:
        """Of a padded step the tokens and sequences that are there."""
        rows = np.flatnonzero(step.positions >= 0)
        if step.positions.size != step.context_lengths.size:
            logits[:] = self.model.forward(_without_padding(step), cache)
            return
        assert (step.positions >= -1).all()
        if rows.size == step.positions.size:
            logits[:] = self.model.forward(step, cache)
            return
        logits[:] = 0
        assert (step.slots[step.positions < 0] == -1).all()
        assert (step.context_lengths == step.positions + 1).all()
        if step.states is not None:
            assert (step.states.slots[step.positions < 0] == -1).all()
        live = replace(
            step,
            **{name: getattr(step, name)[rows] for name in ("token_ids", "positions", "slots", "context_lengths")},
            sequence_lengths=step.sequence_lengths[rows],
            block_tables=step.block_tables[rows],
            sequence_rows=np.arange(rows.size, dtype=np.int32),
            query_starts=np.arange(rows.size + 1, dtype=np.int32),
            logit_rows=np.arange(rows.size, dtype=np.int32),
            states=_states(step, rows),
        )
        if rows.size:
            logits[rows] = self.model.forward(live, cache)


def _without_padding(step: Step) -> Step:
    """A step with more tokens than sequences, padded or not: padding comes last, and belongs to nobody."""
    num_tokens, num_sequences = int((step.positions >= 0).sum()), int((step.context_lengths > 0).sum())
    assert step.query_starts[-1] == step.query_starts[num_sequences] == num_tokens
    assert (step.positions[:num_tokens] >= 0).all()
    assert (step.slots[num_tokens:] == -1).all() and (step.context_lengths[num_sequences:] == 0).all()
    assert (step.logit_rows < num_tokens).all()
    tokens, sequences = slice(num_tokens), slice(num_sequences)
    return replace(
        step,
        **{name: getattr(step, name)[tokens] for name in ("token_ids", "positions", "slots", "sequence_rows")},
        **{name: getattr(step, name)[sequences] for name in ("context_lengths", "sequence_lengths", "block_tables")},
        query_starts=step.query_starts[: num_sequences + 1],
        states=_states(step, sequences),
    )


def _states(step: Step, rows: Any) -> StateRows | None:
    return step.states and StateRows(step.states.slots[rows], step.states.sources[rows])
