"""Where planned steps run: the interface to a device, and the runner for NumPy."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as Series
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from msgspec.structs import replace
from numpy.typing import DTypeLike, NDArray

from kernels.batch import SHARED_TOKENS, PrefixGroups, StateRows, Step
from kernels.logit_edits import allocate_edits
from kernels.reference.sampling import log_probabilities, mask_logits, reset_edits, sample
from orcd.errors import CudaError, OrcdError
from worker.engine.batch_builder import (
    PromptTokens,
    build_prefix_groups,
    build_sampling_params,
    build_step,
    prompt_tokens,
)
from worker.engine.cache.prefix_tree import PrefixTree
from worker.engine.cohort import Draw, DrawnTokens
from worker.engine.logits.edit_rows import MAX_BIASES, EditRows
from worker.engine.logits.logprob_records import are_finite, logprob_records
from worker.engine.logits.mask_slots import number_rows
from worker.engine.logits.token_masks import constrained_rows, masks_of, num_mask_words
from worker.engine.sequence import Chunk, Sequence
from worker.engine.token_constraint import TokenMask
from worker.engine.validation import step_error
from worker.model.registry import Model


class PromptReport(NamedTuple):
    """Records of log probabilities of a part of a sequence's prompt, and what the step did for the chunk besides."""

    logprobs: bytes
    rest: int | Draw | OrcdError | None


Result = int | Draw | PromptReport | OrcdError | None
"""What a step did for a chunk: the id that it drew, None where more of the prompt is to come, or what went wrong."""

Results = Series[Result] | DrawnTokens
"""What a step did for all of its chunks."""


class Runner(Protocol):
    """Where steps run: a model and its KV cache."""

    @property
    def depth(self) -> int:
        """Steps that may be in flight now: with 2, the next one is launched before the last one's draws are known."""

    def has_time(self, share: float) -> bool:
        """Whether less than this share of a step's time has passed since the oldest one in flight began."""

    def launch(self, chunks: list[Chunk], *, draws: bool = True) -> None:
        """Start a step. Steps run in the order of their launch; ``chunks`` have not been counted as launched yet.

        A step whose launch raises is not in flight. With ``draws`` False it ends with its logits for now, and `draw`
        comes next, before any other launch.
        """

    def draw(self, void: Collection[Sequence]) -> None:
        """Go on with the step that was launched up to its logits; if this raises, it is not in flight any more.

        The results of those ``void`` are None, and nothing is asked of their constraints, nor of those that have ended.
        """

    def collect(self) -> Results:
        """Wait for the oldest step in flight; a result for each of its chunks. Raises `CudaError`."""


def run_alone(runner: Runner, chunk: Chunk) -> Result:
    """What a step of one chunk does, or what went wrong. Nothing else is in flight. Raises `CudaError`."""
    try:
        runner.launch([chunk])
        results = runner.collect()
        return results.one_by_one([chunk])[0] if isinstance(results, DrawnTokens) else results[0]
    except CudaError:
        raise
    except Exception as error:
        return step_error(error)


class SynchronousRunner:
    """Runs a step when it is launched: for NumPy, where nothing goes on while the host does something else."""

    depth = 1

    def __init__(
        self, model: Model, *, num_blocks: int, block_tokens: int, max_sequences: int, num_states: int = 0
    ) -> None:
        """``num_states``: see `worker.engine.scheduler.Scheduler`."""
        self._model = model
        self._block_tokens = block_tokens
        self._cache = model.allocate_cache(num_blocks, block_tokens, num_states)
        states = [array for state in self._cache.states for array in state] if num_states else []
        self._states = cast("list[NDArray[np.float32]]", states)  # each [num_states, ...]
        vocab_size = model.config.vocab_size
        self._edits = allocate_edits(_HostMemory(), max_sequences, vocab_size, MAX_BIASES)
        self._edit_rows = EditRows(max_sequences, vocab_size)
        self._prefix_tree = PrefixTree(block_tokens, SHARED_TOKENS)
        self._results: deque[list[Result]] = deque()

    def has_time(self, share: float) -> bool:  # noqa: ARG002
        """A step is done when it was launched."""
        return False

    def launch(self, chunks: list[Chunk], *, draws: bool = True) -> None:
        """Run the step, and keep its results. One that raises leaves all states as they were: it can be run again."""
        assert draws, "a step behind another one whose tokens are not known"
        step = replace(build_step(chunks, self._block_tokens), prefixes=self._prefixes(chunks))
        with nullcontext() if step.states is None else self._restored(step.states):
            self._results.append(self._run(step, chunks))

    def draw(self, void: Collection[Sequence]) -> None:
        """There is never anything to go on with: a step's tokens are known when the next one is planned."""
        raise NotImplementedError

    def _prefixes(self, chunks: list[Chunk]) -> PrefixGroups[NDArray[np.int32]] | None:
        """Which sequences of one token each begin with the same blocks."""
        rows = {chunk.sequence: row for row, chunk in enumerate(chunks) if chunk.num_tokens == 1}
        self._prefix_tree.update(rows)
        return build_prefix_groups(self._prefix_tree.groups(), rows)

    @contextmanager
    def _restored(self, rows: StateRows[NDArray[np.int32]]) -> Iterator[None]:
        """Where what follows raises, give the states that ``rows`` overwrite their old values back."""
        slots = rows.slots[rows.slots == rows.sources]  # of the others nobody needs what was there
        copies = [array[slots] for array in self._states]
        try:
            yield
        except Exception:
            for array, copy in zip(self._states, copies, strict=True):
                array[slots] = copy
            raise

    def _run(self, step: Step[NDArray[np.int32]], chunks: list[Chunk]) -> list[Result]:
        logits = self._model.forward(step, self._cache)
        assert isinstance(logits, np.ndarray)
        drawing = [chunk.sequence for chunk in chunks if chunk.draws]
        draws = iter(self._draw(logits[: len(drawing)], drawing))
        results = [next(draws) if chunk.draws else None for chunk in chunks]
        prompts = prompt_tokens(chunks)
        tokens = [(token_id, each.num_top) for each in prompts for token_id in each.token_ids]
        rows = zip(logits[len(drawing) :], tokens, strict=True)
        return add_prompts(results, prompts, [_logprobs(row, *token) for row, token in rows])

    def collect(self) -> Series[Result]:
        """A result for each chunk of the oldest step that was not collected."""
        return self._results.popleft()

    def _draw(self, logits: NDArray[np.float32], sequences: list[Sequence]) -> list[int | Draw | OrcdError]:
        """One token for each sequence from its row of ``logits`` [R, vocab], which is overwritten."""
        if not sequences:
            return []
        self._edit_rows.assign(sequences)
        for resets in self._edit_rows.take_resets():
            reset_edits(self._edits, resets.arrays())
        errors = self._mask(logits, sequences)
        ids = np.empty(len(sequences), np.int32)
        params = build_sampling_params(sequences, self._edit_rows.row_of)
        sample(logits, replace(params, edits=self._edits), out_ids=ids)
        rows = enumerate(zip(logits, ids.tolist(), sequences, strict=True))
        return [errors.get(row) or _result(*each) for row, each in rows]

    def _mask(self, logits: NDArray[np.float32], sequences: list[Sequence]) -> dict[int, OrcdError]:
        """Leave of ``logits`` [R, vocab] what the constraints of the R ``sequences`` allow; errors by rows."""
        rows = constrained_rows(sequences)
        if not rows:
            return {}
        num_words = num_mask_words(logits.shape[1])
        found = masks_of([sequences[row] for row in rows], num_words)
        masks = [mask for mask in found if isinstance(mask, TokenMask)]
        words = np.frombuffer(b"".join([mask.words for mask in masks]), np.uint32).reshape(-1, num_words)
        numbers, errors = number_rows(rows, found, {mask: number for number, mask in enumerate(masks)}, len(sequences))
        mask_logits(logits, numbers, words, out=logits)
        return errors


class _HostMemory:
    """An `Allocator`; pages are there once something is written to them."""

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of zeros."""
        return np.zeros(shape, dtype)


def add_prompts(
    results: Series[int | Draw | OrcdError | None], prompts: Series[PromptTokens], logprobs: Iterable[bytes]
) -> list[Result]:
    """The results of chunks with those of their ``prompts``, of whose tokens ``logprobs`` has a record each."""
    left = iter(logprobs)
    return [
        _with_prompt(result, b"".join([next(left) for _ in prompt.token_ids]), prompt.num_top)
        if prompt.token_ids
        else result
        for result, prompt in zip(results, prompts, strict=True)
    ]


def _with_prompt(result: int | Draw | OrcdError | None, records: bytes, num_top: int) -> Result:
    return PromptReport(records, result) if are_finite(records, num_top) else non_finite()


def non_finite() -> OrcdError:
    """What is wrong with a request whose logits hold NaN or infinity."""
    return OrcdError("the model gave non-finite logits for this request; its weights or this input are at fault")


def drawn(token_id: int, logprobs: bytes | None) -> int | Draw | OrcdError:
    """What a draw gave that left ``token_id``."""
    if token_id < 0:
        return non_finite()
    return token_id if logprobs is None else Draw(token_id, logprobs)


def _result(logits: NDArray[np.float32], token_id: int, sequence: Sequence) -> int | Draw | OrcdError:
    """What was drawn from a row of ``logits`` [vocab]."""
    num_top = sequence.sampling.logprobs
    return drawn(token_id, None if num_top is None or token_id < 0 else _logprobs(logits, token_id, num_top))


def _logprobs(logits: NDArray[np.float32], token_id: int, num_top: int) -> bytes:
    """A record of what a row of ``logits`` [vocab] says."""
    values = np.empty_like(logits)
    log_probabilities(logits[None], out=values[None])
    found = np.argsort(-values, kind="stable")[:num_top].astype(np.int32)  # the lowest id of equals first
    top_ids, top_logprobs = np.full((1, num_top), -1, np.int32), np.full((1, num_top), -np.inf, np.float32)
    top_ids[0, : len(found)], top_logprobs[0, : len(found)] = found, values[found]
    (record,) = logprob_records(values[[token_id]], top_ids, top_logprobs)
    return record
