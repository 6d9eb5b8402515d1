"""Each device gets the runner that it needs."""

from __future__ import annotations

from tests.worker.engine.context_model import ContextModel
from tests.worker.engine.cuda.late_device import LateModel
from worker.engine.cuda.runner import CudaRunner
from worker.engine.runner import SynchronousRunner
from worker.engine.runners.open_runner import RunnerSize, open_runner
from worker.settings import Settings

SETTINGS = Settings(device="cpu", kv_block_tokens=4, step_tokens=16, engine_step_timeout_s=100)
SIZE = RunnerSize(num_blocks=8, num_states=0, max_sequences=4, max_sequence_tokens=32)


def test_a_device_that_works_by_itself_is_run_ahead_of_the_host_and_may_take_most_of_a_steps_time() -> None:
    runner = open_runner(LateModel(), SETTINGS, SIZE, capture=True)
    assert isinstance(runner, CudaRunner)
    assert runner._timeout_s == 80
    assert runner.depth > 1


def test_arrays_of_numpy_are_computed_when_a_step_is_launched() -> None:
    runner = open_runner(ContextModel(), SETTINGS, SIZE, capture=True)
    assert isinstance(runner, SynchronousRunner)
    assert runner.depth == 1
