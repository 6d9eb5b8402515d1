"""A worker that is told to leave while it looks for the job that kills its engine; real workers, whose engine dies."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orcd.client import Client
from tests.conftest import wait_until
from tests.tasks.celery_ext.test_shutdown import DRAIN_S, END_S, LONG_DRAIN_S, SlowWorker, engines_of
from tests.tasks.dispatch.test_dispatcher import Streams
from tests.tasks.dispatch.test_dispatcher_isolation import MODEL, deadly, mortal, requests, results
from tests.tasks.worker_process import WorkerProcess

NUM_JOBS = 8


STILL_ENGINE = """
if "--in-flight-fd" in sys.orig_argv and os.path.exists({died!r}):  # in an engine that is started after the first one
    if {loads}:
        os.kill(os.getpid(), signal.SIGSTOP)

    def launch_or_stop(runner, chunks, **options):
        if any(sequence.num_output for sequence, _, _ in chunks):
            os.kill(os.getpid(), signal.SIGSTOP)
        launch(runner, chunks, **options)

    SynchronousRunner.launch = launch_or_stop
"""


def still_after_death(folder: Path, *, loads: bool) -> dict[str, str]:
    """The variables of a worker whose engine dies of some prompts, and whose next one stands still.

    It does so when it has drawn a token, or, if it ``loads``, before it is ready.
    """
    died = str(folder / "died")
    variables = mortal(folder, f"open({died!r}, 'w').close(); os.kill(os.getpid(), signal.SIGSEGV)")
    with (folder / "sitecustomize.py").open("a") as code:
        code.write(STILL_ENGINE.format(died=died, loads=loads))
    return variables


def still_engine(worker: WorkerProcess) -> psutil.Process:
    """The engine that stands still, waited for."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            found[:] = [engine for engine in engines_of(worker) if engine.status() == psutil.STATUS_STOPPED]
        return bool(found)

    wait_until(is_there)
    return found[0]


@pytest.mark.parametrize("loads", [False, True], ids=["half of them run", "the engine starts again"])
@pytest.mark.parametrize(
    ("remapped", "drain_s", "least_s"), [("", DRAIN_S, DRAIN_S), ("SIGQUIT", LONG_DRAIN_S, 0)], ids=["drain", "cold"]
)
def test_a_worker_that_leaves_during_a_search_gives_back_suspects_and_all_that_wait(
    redis_url: str, tmp_path: Path, remapped: str, drain_s: int, least_s: float, loads: bool
) -> None:
    folders = [tmp_path / "leaver", tmp_path / "successor"]
    for folder in folders:
        folder.mkdir()
    variables = still_after_death(folders[0], loads=loads)
    variables |= {"REMAP_SIGTERM": remapped, "ORCD_DRAIN_TIMEOUT_S": str(drain_s)}
    with Client(redis_url) as client, SlowWorker(redis_url, MODEL, tmp_path, **variables) as worker:
        harmless = requests(NUM_JOBS)
        expected = results(client, harmless)
        streams = Streams(redis_url, client.submit_many([deadly(harmless[0], 9), *harmless[1:]]))
        engine = still_engine(worker)
        num_before = len(worker.events())
        took_s = worker.leave([signal.SIGTERM])
        assert took_s <= least_s + END_S
        assert took_s >= least_s or loads, "while no engine is up, there is nothing to wait for"
        assert not engine.is_running()
        assert [event for event in worker.events()[num_before:] if event["level"] != "info"] == []
        statuses = client.statuses(streams.job_ids)
        assert {(status.state, status.losses) for status in statuses} == {("queued", 0)}
        with WorkerProcess(redis_url, MODEL, tmp_path, **mortal(folders[1])):
            ended = streams.results()
        assert [result.state for result in ended] == ["failed", *["succeeded"] * (NUM_JOBS - 1)]
        assert ended[0].error is not None
        assert ended[0].error.code == "POISONED"
        assert [result.text for result in ended[1:]] == [result.text for result in expected[1:]]
