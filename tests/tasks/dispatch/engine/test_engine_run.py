import sys
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from tasks.dispatch.engine.engine_process import EngineExit, EngineProcess
from tasks.dispatch.engine.engine_run import start_engine
from tests.worker.tiny_model import write_tiny_model
from worker import contract
from worker.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(model=str(write_tiny_model(tmp_path / "tiny.gguf")), device="cpu", log_format="json")


def test_an_engine_that_was_started_before_is_the_first_run_and_the_next_one_is_another(settings: Settings) -> None:
    heard: SimpleQueue[contract.Event | EngineExit] = SimpleQueue()
    process = EngineProcess(settings, heard.put, heard.put, lambda *_: None)
    pids = []
    run = start_engine(settings)
    process.start(run)
    try:
        for _ in range(2):
            while not isinstance(event := heard.get(timeout=60), contract.Ready):
                assert not isinstance(event, EngineExit)
            pids.append(event.pid)
            process.kill()
            while not isinstance(heard.get(timeout=60), EngineExit):
                continue
            process.restart()
    finally:
        process.stop()
    assert pids[0] == run.process.pid != pids[1]


def test_an_engine_that_cannot_be_started_leaves_nothing_open(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = psutil.Process().num_fds()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FileNotFoundError):
        start_engine(settings)
    assert psutil.Process().num_fds() == before
