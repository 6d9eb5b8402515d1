"""Where planned steps run: the interface to a device, and the runner for NumPy."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Series
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.reference.sampling import adjust_logits, log_probabilities, mask_logits, sample
from orcd.errors import OrcdError
from worker.contract import TokenLogprobs
from worker.engine.batch_builder import build_sampling_params, build_step
from worker.engine.logits.penalties import build_adjustments
from worker.engine.logits.token_masks import TokenMasks, constrained_rows, num_mask_words
from worker.engine.scheduler import Chunk
from worker.engine.sequence import Sequence
from worker.model.registry import Model


class Draw(NamedTuple):
    """A token drawn for one sequence."""

    token_id: int
    logprobs: TokenLogprobs | None


Result = Draw | OrcdError | None
"""What a step did for a chunk: None where more of the prompt is to come, or what went wrong."""


class Runner(Protocol):
    """Where steps run: a model and its KV cache."""

    @property
    def depth(self) -> int:
        """Steps that may be in flight now: with 2, the next one is launched before the last one's draws are known."""

    def launch(self, chunks: list[Chunk]) -> None:
        """Start a step. Steps run in the order of their launch; ``chunks`` have not been counted as launched yet.

        A step whose launch raises is not in flight.
        """

    def collect(self) -> Series[Result]:
        """Wait for the oldest step in flight; a result for each of its chunks. Raises `CudaError`."""


class SynchronousRunner:
    """Runs a step when it is launched: for NumPy, where nothing goes on while the host does something else."""

    depth = 1

    def __init__(self, model: Model, *, num_blocks: int, block_tokens: int) -> None:
        self._model = model
        self._block_tokens = block_tokens
        self._cache = model.allocate_cache(num_blocks, block_tokens)
        self._token_masks = TokenMasks()
        self._results: deque[list[Result]] = deque()

    def launch(self, chunks: list[Chunk]) -> None:
        """Run the step, and keep its results."""
        logits = self._model.forward(build_step(chunks, self._block_tokens), self._cache)
        assert isinstance(logits, np.ndarray)
        draws = iter(self._draw(logits, [chunk.sequence for chunk in chunks if chunk.draws]))
        self._results.append([next(draws) if chunk.draws else None for chunk in chunks])

    def collect(self) -> Series[Result]:
        """A result for each chunk of the oldest step that was not collected."""
        return self._results.popleft()

    def _draw(self, logits: NDArray[np.float32], sequences: list[Sequence]) -> list[Draw | OrcdError]:
        """One token for each sequence from its row of ``logits`` [R, vocab], which is overwritten."""
        if not sequences:
            return []
        adjust_logits(logits, build_adjustments(sequences), out=logits)
        errors = self._mask(logits, sequences)
        ids = np.empty(len(sequences), np.int32)
        sample(logits, build_sampling_params(sequences), out_ids=ids)
        drawn = enumerate(zip(logits, ids.tolist(), sequences, strict=True))
        return [errors.get(row) or _result(*each) for row, each in drawn]

    def _mask(self, logits: NDArray[np.float32], sequences: list[Sequence]) -> dict[int, OrcdError]:
        """Leave of ``logits`` [R, vocab] what the constraints of the R ``sequences`` allow; errors by rows."""
        rows = constrained_rows(sequences)
        if not rows:
            return {}
        masks = np.empty((len(rows), num_mask_words(logits.shape[1])), np.uint32)
        errors = self._token_masks.write(sequences, rows, masks)
        mask_logits(logits, np.array(rows, np.int32), masks, out=logits)
        return errors


def non_finite() -> OrcdError:
    """What is wrong with a request whose logits hold NaN or infinity."""
    return OrcdError("the model gave non-finite logits for this request; its weights or this input are at fault")


def _result(logits: NDArray[np.float32], token_id: int, sequence: Sequence) -> Draw | OrcdError:
    """What was drawn from a row of ``logits`` [vocab]."""
    return Draw(token_id, _logprobs(logits, token_id, sequence.sampling.logprobs)) if token_id >= 0 else non_finite()


def _logprobs(logits: NDArray[np.float32], token_id: int, num_top: int | None) -> TokenLogprobs | None:
    if num_top is None:
        return None
    values = np.empty_like(logits)
    log_probabilities(logits[None], out=values[None])
    top = np.argsort(-values, kind="stable")[:num_top]  # the lowest id of equals first
    top = top[np.isfinite(values[top])]
    return TokenLogprobs(float(values[token_id]), tuple(top.tolist()), tuple(values[top].tolist()))
