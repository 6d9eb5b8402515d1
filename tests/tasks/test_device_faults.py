"""What becomes of a worker and its jobs when the device under the engine fails: real workers, engines that play ill."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orcd.client import Client
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

SHORT = {"prompt": "old pond", "max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
LONG = {"prompt": "old pond", "max_tokens": 60, "seed": 7, "ignore_eos": True}

PLAY_ILL = """
import os, sys, time

if "--in-flight-fd" in sys.orig_argv:  # in the engine process
    from kernels.devices.cpu import CpuDevice
    from kernels.errors import CudaFailure
    from worker.engine.engine import Engine

    well_step = Engine.advance

    def step(engine):
        {step}
        return well_step(engine)

    def once():
        try:
            os.unlink({fault!r})
        except FileNotFoundError:
            return False
        return True

    Engine.advance = step
    CpuDevice.verify_residency = lambda device: {residency}
"""

Play = Callable[..., dict[str, str]]


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    """While this file exists, the device fails."""
    return tmp_path / "fault"


@pytest.fixture
def play(tmp_path: Path, fault: Path) -> Play:
    """The variables of a worker whose engine runs ``step`` before each step, and finds ``residency``."""

    def play(*, step: str = "pass", residency: str = "[]") -> dict[str, str]:
        body = PLAY_ILL.format(fault=str(fault), step=step, residency=residency.format(fault=str(fault)))
        return slow_engine(tmp_path, 0.0, body)

    return play


def test_a_worker_whose_memory_is_not_where_it_must_be_takes_no_job_until_it_is(
    redis_url: str, shallow_model: Path, tmp_path: Path, fault: Path, play: Play
) -> None:
    variables = play(residency="['kv cache is managed memory'] if os.path.exists({fault!r}) else []")
    fault.touch()
    worker = WorkerProcess(redis_url, shallow_model, tmp_path, ORCD_VRAM_CHECK_S="1", **variables)
    with worker, Client(redis_url) as client:
        worker.wait_for("unhealthy")
        (problem,) = worker.events("error")
        assert "kv cache is managed memory" in problem["message"]
        job_id = client.submit(**SHORT)
        time.sleep(2)
        assert client.status(job_id).state == "queued"
        fault.unlink()
        assert client.result(job_id, timeout=60).state == "succeeded"
        fault.touch()
        worker.wait_for("unhealthy", 2)


@pytest.mark.parametrize(
    ("step", "code", "message"),
    [
        ("if once(): raise CudaFailure('matmul_q4_k_decode', 'CUDA_ERROR_ILLEGAL_ADDRESS')", "CUDA_ERROR", "matmul_q4"),
        ("if once(): time.sleep(1000)", "ENGINE_LOST", None),
    ],
    ids=["an error that sticks", "a step that hangs"],
)
def test_the_engine_is_replaced_and_its_jobs_end_as_if_nothing_had_been(
    redis_url: str, shallow_model: Path, tmp_path: Path, fault: Path, play: Play, step: str, code: str, message: str
) -> None:
    variables = play(step=step) | {"ORCD_ENGINE_STEP_TIMEOUT_S": "60" if message else "2"}
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as worker, Client(redis_url) as client:
        undisturbed = client.result(client.submit(**LONG), timeout=60)
        first_engine = worker.engine_pid
        with held_engine(tmp_path):
            job_id = client.submit(**LONG)
            wait_until_running(client, [job_id], 3)
            fault.touch()
        assert client.result(job_id, timeout=60).choices == undisturbed.choices
        assert not fault.exists(), "the engine never met its fault"
        assert worker.engine_pid != first_engine
        first, *_, exited = worker.events("error")
        assert first["code"] == code
        assert message is None or message in first["message"]
        assert exited["code"] == "ENGINE_LOST"
