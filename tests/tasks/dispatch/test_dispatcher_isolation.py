"""Requests that kill their engine, among others that do not (F13); real workers, whose engine is made to die."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orcd.client import Client
from orcd.result import Result
from tests.models.files import SMALL
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

NUM_JOBS = 64
NUM_TOKENS = 30
MODEL = SMALL["llama2-q4_0"]
DEADLY_ID = 17
"""A prompt that begins with this id has the engine of these tests die of a signal of its own, or hang, at the token
that the prompt's second id says."""

MORTAL_ENGINE = """
import os, resource, signal, sys, time

if "--in-flight-fd" in sys.orig_argv:  # in the engine process
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from worker.engine.runner import SynchronousRunner

    launch = SynchronousRunner.launch

    def launch_or_die(runner, chunks, **options):
        for sequence, _, _ in chunks:
            deadly, at = sequence.token_ids[:2]
            if deadly == {deadly} and sequence.num_output >= at:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                {end}
        launch(runner, chunks, **options)

    SynchronousRunner.launch = launch_or_die
"""


def mortal(folder: Path, end: str = "os.kill(os.getpid(), signal.SIGSEGV)") -> dict[str, str]:
    """The variables of a worker whose engine dies of some prompts, or does something else at its end."""
    (folder / "sitecustomize.py").write_text(MORTAL_ENGINE.format(deadly=DEADLY_ID, end=end))
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def requests(num_jobs: int = NUM_JOBS) -> list[dict[str, Any]]:
    """Harmless ones, greedy and sampled, that run to their full length."""
    return [
        {
            "prompt_token_ids": [5 + i, 7, 11 + i % 3],
            "max_tokens": NUM_TOKENS,
            "temperature": 0.0 if i % 2 else 0.8,
            "seed": i,
            "ignore_eos": True,
        }
        for i in range(18, 18 + num_jobs)
    ]


def deadly(request: dict[str, Any], at: int) -> dict[str, Any]:
    """The same request, of which the engine dies when it draws token ``at``."""
    return request | {"prompt_token_ids": [DEADLY_ID, at, 11]}


def results(client: Client, requests: list[dict[str, Any]]) -> list[Result]:
    return [client.result(job_id, timeout=180) for job_id in client.submit_many(requests)]


@pytest.mark.parametrize("killers", [{0: 15}, {21: 0, 40: 20}], ids=["one", "two"])
def test_of_64_jobs_only_those_that_kill_the_engine_are_given_up(
    redis_url: str, tmp_path: Path, killers: dict[int, int]
) -> None:
    """The others' texts are those of an undisturbed run, and the engine is started as often as promised."""
    with WorkerProcess(redis_url, MODEL, tmp_path, **mortal(tmp_path)) as worker, Client(redis_url) as client:
        harmless = requests()
        expected = results(client, harmless)
        assert {result.state for result in expected} == {"succeeded"}
        mixed = [deadly(each, killers[i]) if i in killers else each for i, each in enumerate(harmless)]
        for i, result in enumerate(results(client, mixed)):
            if i in killers:
                assert result.error is not None
                assert (result.state, result.error.code) == ("failed", "POISONED")
            else:
                assert (result.state, result.text) == ("succeeded", expected[i].text), i
        deaths = [event["exit_code"] for event in worker.events("error") if "exit_code" in event]
        assert set(deaths) == {-signal.SIGSEGV}
        assert len(deaths) <= len(killers) * (math.log2(NUM_JOBS) + 2)
        assert worker.events("isolation")
        worker.wait_for("isolation_end")
        assert {client.status(event["job_id"]).attempt for event in worker.events("execute_start")} == {1}


def test_a_job_in_which_the_engine_hangs_is_found_as_one_that_kills_it(redis_url: str, tmp_path: Path) -> None:
    """It is the worker that sends SIGKILL then, and nobody from outside."""
    variables = mortal(tmp_path, "time.sleep(600)") | {"ORCD_ENGINE_STEP_TIMEOUT_S": "3"}
    with WorkerProcess(redis_url, MODEL, tmp_path, **variables) as worker, Client(redis_url) as client:
        harmless, other = requests(2)
        expected = results(client, [harmless])
        found = results(client, [harmless, deadly(other, 5)])
        assert [result.state for result in found] == ["succeeded", "failed"]
        assert found[0].text == expected[0].text
        assert found[1].error is not None
        assert found[1].error.code == "POISONED"
        deaths = [event["exit_code"] for event in worker.events("error") if "exit_code" in event]
        assert set(deaths) == {-signal.SIGKILL}
        assert len(deaths) <= math.log2(2) + 2


def test_jobs_that_come_during_a_search_wait_and_all_are_handed_over_when_the_worker_leaves(
    redis_url: str, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, MODEL, tmp_path, **mortal(tmp_path)) as leaver, Client(redis_url) as client:
        first, *rest = requests(8)
        expected = results(client, [first, *rest])
        job_ids = client.submit_many([deadly(first, 1), *rest[:3]])
        leaver.wait_for("isolation")
        job_ids += client.submit_many(rest[3:])
        leaver.process.terminate()
        assert leaver.process.wait(60) == 0
        with WorkerProcess(redis_url, MODEL, tmp_path, **mortal(tmp_path)):
            ended = [client.result(job_id, timeout=60) for job_id in job_ids]
        assert [result.state for result in ended] == ["failed", *["succeeded"] * 7]
        assert [result.text for result in ended[1:]] == [result.text for result in expected[1:]]


def test_a_lone_job_is_given_up_with_the_third_sigkill_from_outside(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    variables = slow_engine(tmp_path)
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as worker, Client(redis_url) as client:
        job_id = client.submit(prompt_token_ids=[5, 6, 7], max_tokens=900, ignore_eos=True)
        wait_until_running(client, [job_id], 5)
        for deaths in (1, 2, 3):
            assert client.status(job_id).state == "running"
            os.kill(worker.engine_pid, signal.SIGKILL)
            worker.wait_for("ready", deaths + 1)
        result = client.result(job_id, timeout=60)
        assert result.error is not None
        assert (result.state, result.error.code) == ("failed", "POISONED")
        assert client.result(client.submit(prompt_token_ids=[5], max_tokens=3), timeout=60).state == "succeeded"
