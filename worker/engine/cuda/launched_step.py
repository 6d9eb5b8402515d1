"""A step in flight on a CUDA device: what it drew is on its way to the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as Series

import msgspec
import numpy as np
from numpy.typing import NDArray

from orcd.errors import OrcdError
from worker.engine.batch_builder import PromptTokens
from worker.engine.cohort import DrawnTokens
from worker.engine.cuda.logit_processing import Reports, read_reports
from worker.engine.cuda.pinned_ring import Download
from worker.engine.runner import Results, add_prompts, drawn
from worker.engine.sequence import Chunk, Sequence

SHORT_WAIT_S = 0.00005
"""Where the host waits longer than that for a step, it was not done when it began to."""


class StepTimes:
    """When steps begin on the device, and how long they take, as far as the host can tell."""

    def __init__(self) -> None:
        self.waited_s = 0.0
        """For the step that was read last."""
        self._began_s = self._step_s = 0.0  # of the oldest in flight; of the last one that was waited for

    def launch(self, in_flight: Collection[LaunchedStep]) -> None:
        """Another step is launched behind those ``in_flight``."""
        if not in_flight:
            self._began_s = time.monotonic()

    def read_ids(self, step: LaunchedStep, timeout_s: float) -> NDArray[np.int32]:
        """`LaunchedStep.read_ids` of the oldest one in flight."""
        start = time.monotonic()
        ids = step.read_ids(timeout_s)
        end = time.monotonic()
        self.waited_s = end - start
        if self.waited_s > SHORT_WAIT_S:
            self._step_s = end - self._began_s
        self._began_s = end
        return ids

    def has_time(self, share: float) -> bool:
        """Whether less than this share of a step's time has passed since the oldest one in flight began."""
        return time.monotonic() - self._began_s < share * self._step_s


class LaunchedStep(msgspec.Struct, frozen=True, eq=False):
    """The draw of each chunk is ``ids[rows[i]]``, unless the row is -1."""

    rows: NDArray[np.intp]
    ids: Download
    reports: Reports | None = None
    prompts: Series[PromptTokens] = ()  # what reports of the chunks' prompts are about, unless there are none
    errors: Mapping[int, OrcdError] = {}  # of draws that are none, by rows

    def read_ids(self, timeout_s: float) -> NDArray[np.int32]:
        """Wait for what was drawn; raises `kernels.errors.CudaFailure` if that failed or takes too long."""
        return self.ids.read(timeout_s).view(np.int32)

    def results(self, ids: NDArray[np.int32], timeout_s: float) -> Results:
        """A result for each chunk, once the ``ids`` were read; raises what that does."""
        reports, rows = self.reports, self.rows.tolist()
        drawn_ids: list[int] = ids[self.rows].tolist() if ids.size else rows  # of row -1 nobody looks at the id
        logprobs: dict[int, bytes] = {}
        if reports is not None:
            logprobs = read_reports(reports.download, reports.num_rows, reports.wanted, timeout_s)
        if -1 not in rows and -1 not in drawn_ids and not self.errors and not self.prompts:
            return DrawnTokens(drawn_ids, list(logprobs.values()))
        results = [
            None if row < 0 else self.errors.get(row) or drawn(token_id, logprobs.get(row))
            for row, token_id in zip(rows, drawn_ids, strict=True)
        ]
        return add_prompts(results, self.prompts, self._read_prompts(timeout_s)) if self.prompts else results

    def _read_prompts(self, timeout_s: float) -> Iterable[bytes]:
        """The log probabilities of tokens of prompts, a record of each."""
        reports = self.reports
        assert reports is not None, "a prompt whose log probabilities are not fetched"
        num_tops = [prompt.num_top for prompt in self.prompts for _ in prompt.token_ids]
        wanted = list(enumerate(num_tops))
        return read_reports(reports.download, len(num_tops), wanted, timeout_s, num_before=reports.num_rows).values()


Draw = Callable[[Collection[Sequence]], LaunchedStep]
"""Enqueues what is left of a step that was enqueued up to its logits: see `worker.engine.runner.Runner.draw`."""


def without(void: Collection[Sequence], rows: NDArray[np.intp], chunks: list[Chunk]) -> NDArray[np.intp]:
    """The ``rows`` from which ``chunks`` are drawn, -1 of the ``void`` ones."""
    if not void:
        return rows
    return np.where([sequence in void for sequence, _, _ in chunks], -1, rows)
