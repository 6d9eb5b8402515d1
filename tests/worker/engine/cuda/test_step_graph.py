from collections.abc import Callable

import numpy as np
import pytest

from tests.worker.engine.cuda.late_device import LateDevice
from worker.engine.cuda.step_graph import LateStepGraph, StepGraph, StepParts

LOGITS = np.zeros((1, 4), np.float32)


class Recorder:
    """The parts of a step that says what of it has run, and how often it was asked to enqueue it."""

    def __init__(self, kind: type[StepGraph] = StepGraph) -> None:
        self.device = LateDevice()
        self.ran: list[str] = []
        self.num_forwards = 0
        parts = StepParts(self.forward, self.part("sample"), self.part("draw"), self.part("report"))
        self.graph = kind(self.device, parts, "step")

    def forward(self) -> np.ndarray:
        self.num_forwards += 1
        self.device.enqueue(lambda: self.ran.append("forward"))
        return LOGITS

    def part(self, name: str) -> Callable[[np.ndarray], None]:
        def enqueue(logits: np.ndarray) -> None:
            assert logits is LOGITS
            self.device.enqueue(lambda: self.ran.append(name))

        return enqueue

    def run(self) -> list[str]:
        self.device.run_until(len(self.device._queue))
        ran, self.ran = self.ran, []
        return ran


def test_a_step_that_was_not_captured_is_enqueued_every_time():
    recorder = Recorder()
    recorder.graph.launch()
    recorder.graph.launch()
    assert recorder.run() == ["forward", "sample"] * 2
    assert recorder.num_forwards == 2


def test_a_captured_step_runs_as_often_as_it_is_launched_and_not_when_it_is_captured():
    recorder = Recorder()
    recorder.graph.capture_step()
    assert recorder.run() == []
    recorder.graph.launch()
    recorder.graph.launch()
    assert recorder.run() == ["forward", "sample"] * 2
    assert recorder.num_forwards == 1


@pytest.mark.parametrize("is_captured", [True, False])
def test_in_two_parts_the_host_comes_between_the_forward_pass_and_the_draw(is_captured: bool):
    recorder = Recorder()
    if is_captured:
        recorder.graph.capture_parts()
    recorder.graph.launch_forward()
    recorder.device.enqueue(lambda: recorder.ran.append("masks"))
    recorder.graph.launch_draw(reports=False)
    assert recorder.run() == ["forward", "masks", "draw"]


@pytest.mark.parametrize("is_captured", [True, False])
def test_a_draw_reports_only_where_that_is_wanted(is_captured: bool):
    recorder = Recorder()
    if is_captured:
        recorder.graph.capture_parts()
    for reports in (True, False, True):
        recorder.graph.launch_forward()
        recorder.graph.launch_draw(reports=reports)
    assert recorder.run() == ["forward", "draw", "report", "forward", "draw", "forward", "draw", "report"]


def test_a_late_graph_that_was_captured_is_not_captured_again():
    recorder = Recorder(LateStepGraph)
    recorder.graph.capture_step()
    for _ in range(3):
        recorder.graph.launch()
    assert recorder.run() == ["forward", "sample"] * 3
    assert recorder.num_forwards == 1


def test_a_late_graph_is_captured_when_it_is_launched_again():
    recorder = Recorder(LateStepGraph)
    for _ in range(3):
        recorder.graph.launch()
    assert recorder.run() == ["forward", "sample"] * 3
    assert recorder.num_forwards == 2
    for _ in range(3):
        recorder.graph.launch_forward()
        recorder.graph.launch_draw(reports=False)
    assert recorder.run() == ["forward", "draw"] * 3
    assert recorder.num_forwards == 4
