import numpy as np
import pytest

from kernels.batch import SamplingParams, Step
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import sequence
from worker.engine.batch_builder import build_sampling_params, build_step
from worker.engine.cuda import whole_step_graphs
from worker.engine.cuda.buffers import StepBuffers, StepLimits
from worker.engine.cuda.step_graph import HostedDraw
from worker.engine.cuda.whole_step_graphs import WholeStepGraph, WholeStepGraphs
from worker.engine.sequence import Chunk

LIMITS = StepLimits(block_tokens=4, step_tokens=64, max_sequences=6, max_sequence_tokens=128, vocab_size=32)


class Bench:
    """Sends prompts of one sequence to the graphs of a model that counts its forward passes."""

    def __init__(self) -> None:
        self.model = LateModel()
        self.num_forwards = 0
        self.drawn: list[int] = []
        self.buffers = StepBuffers.allocate(self.model.device.step_buffers, LIMITS)
        forward = self.model.forward

        def counted(step: Step, cache: np.ndarray) -> np.ndarray:
            self.num_forwards += 1
            return forward(step, cache)

        self.model.forward = counted
        self.graphs = WholeStepGraphs(
            self.model,
            self.model.allocate_cache(32, 4),
            self.buffers.rows,
            self.buffers.whole,
            LIMITS,
            HostedDraw(self.draw, lambda *_: None),
        )

    def draw(self, logits: np.ndarray, params: SamplingParams) -> None:
        self.model.device.enqueue(lambda: self.drawn.append(logits.shape[0]))

    def prepare(self, token_ids: list[int]) -> WholeStepGraph:
        only = sequence(token_ids, list(range(-(-len(token_ids) // 4))))
        step = build_step([Chunk(only, len(token_ids), True)], LIMITS.block_tokens)
        graph = self.graphs.graph_for(step)
        assert graph is not None
        staging = np.empty(graph.sent.nbytes, np.uint8)
        graph.write(step, build_sampling_params([only], lambda _sequence: -1), staging)
        self.model.device.copy_to_device_async(graph.sent, staging)
        return graph

    def token_after(self, token_ids: list[int]) -> int:
        self.prepare(token_ids).launch()
        self.run()
        return int(self.buffers.rows.drawn[0])

    def run(self) -> None:
        self.model.device.run_until(len(self.model.device._queue))


def test_a_size_is_enqueued_the_first_time_captured_the_second_and_only_replayed_then():
    bench = Bench()
    prompts = [[number, *range(4 + number)] for number in range(6)]
    counts = []
    for prompt in prompts:
        bench.token_after(prompt)
        counts.append(bench.num_forwards)
    assert counts == [1, 2, 2, 2, 2, 2]


def test_what_is_drawn_is_that_of_the_step_that_was_sent():
    bench, other = Bench(), Bench()
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5], [3, 5, 8, 9], [7, 9, 3]]
    assert [bench.token_after(prompt) for prompt in prompts] == [Bench().token_after(prompt) for prompt in prompts], (
        "graphs and steps that are enqueued differ"
    )
    assert len({other.token_after(prompt) for prompt in prompts}) > 1


def test_in_two_parts_it_is_captured_apart_from_the_whole():
    bench = Bench()
    for number in range(4):
        graph = bench.prepare([number, 2, 3])
        graph.launch_forward()
        graph.launch_draw(reports=True)
        bench.run()
    assert bench.drawn == [1] * 4
    assert bench.num_forwards == 2
    assert bench.token_after([1, 2, 3]) == Bench().token_after([1, 2, 3])


def test_steps_that_are_too_large_have_no_graph():
    bench = Bench()
    only = sequence(list(range(32)) * 3, list(range(24)))
    step = build_step([Chunk(only, 96, True)], LIMITS.block_tokens)
    assert bench.graphs.graph_for(step) is None


def test_of_too_many_sizes_the_one_that_was_not_used_for_longest_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(whole_step_graphs, "MOST_GRAPHS", 2)
    bench = Bench()
    short, middle, long = [1] * 8, [1] * 20, [1] * 40
    first, second = bench.prepare(short), bench.prepare(middle)
    assert bench.prepare(short) is first
    bench.prepare(long)
    assert bench.prepare(short) is first
    assert bench.prepare(middle) is not second
