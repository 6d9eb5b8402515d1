"""What the host makes of a step that has run."""

from __future__ import annotations

import numpy as np
import pytest

from orcd.errors import OrcdError
from tests.worker.engine.cuda.late_device import LateDevice
from tests.worker.engine.generation import sequence
from worker.engine.cohort import DrawnTokens
from worker.engine.cuda.launched_step import SHORT_WAIT_S, LaunchedStep, StepTimes, without
from worker.engine.cuda.pinned_ring import Download, DownloadRing
from worker.engine.sequence import Chunk


def on_its_way(*ids: int) -> Download:
    device = LateDevice()
    return DownloadRing(device, 4 * len(ids)).fetch(np.array(ids, np.int32).view(np.uint8))


def test_there_is_time_until_a_share_of_what_the_last_step_took_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, times = 100.0, StepTimes()
    monkeypatch.setattr("time.monotonic", lambda: now)

    class Running(LaunchedStep, frozen=True, eq=False):
        step_s: float = 0.0

        def read_ids(self, timeout_s: float) -> np.ndarray:
            nonlocal now
            now += self.step_s
            return np.zeros(1, np.int32)

    def wait(step_s: float) -> None:
        times.read_ids(Running(np.array([0]), on_its_way(7), step_s=step_s), 1)

    assert not times.has_time(0.9), "nothing is known of steps"
    times.launch([])
    wait(2.0)
    assert times.waited_s == 2.0
    now += 0.9
    assert times.has_time(0.5)
    now += 0.2
    assert not times.has_time(0.5) and times.has_time(0.9)
    now += 5.0
    wait(SHORT_WAIT_S / 2)
    now += 1.5
    assert times.has_time(0.9), "the host was late, which says nothing of how long the step took"
    assert not times.has_time(0.7)


def test_each_chunk_has_what_its_row_drew_and_none_without_one() -> None:
    step = LaunchedStep(np.array([1, -1, 0]), on_its_way(7, 8))
    assert step.results(step.read_ids(1), 1) == [8, None, 7]


def test_a_step_that_draws_nothing_has_nothing_for_its_chunks() -> None:
    step = LaunchedStep(np.array([-1, -1]), on_its_way())
    assert step.results(step.read_ids(1), 1) == [None, None]


def test_ids_of_all_chunks_are_told_together() -> None:
    step = LaunchedStep(np.array([1, 0]), on_its_way(7, 8))
    results = step.results(step.read_ids(1), 1)
    assert isinstance(results, DrawnTokens) and (results.ids, results.logprobs) == ([8, 7], [])


def test_a_row_that_drew_nothing_or_had_nothing_to_draw_is_an_error_of_its_chunk() -> None:
    error = OrcdError("nothing left")
    step = LaunchedStep(np.arange(3), on_its_way(7, -1, 9), errors={2: error})
    first, second, third = step.results(step.read_ids(1), 1)
    assert first == 7
    assert isinstance(second, OrcdError) and "non-finite" in second.message
    assert third is error


def test_void_chunks_are_drawn_from_no_row() -> None:
    chunks = [Chunk(sequence([1], [0]), 1, True) for _ in range(3)]
    rows = np.array([4, 5, 6])
    assert without((), rows, chunks) is rows
    assert without({chunks[1].sequence}, rows, chunks).tolist() == [4, -1, 6]
