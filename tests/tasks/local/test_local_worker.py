"""A worker as a child process."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from orcd.client import Client
from orcd.errors import EngineLost, ModelLoadFailed
from tasks.local.local_worker import LocalWorker
from worker.settings import Settings


def test_it_serves_jobs_until_it_is_stopped(redis_url: str, shallow_model: Path) -> None:
    loaded: list[int] = []
    settings = Settings(model=str(shallow_model), device="cpu", redis_url=redis_url)
    with LocalWorker(settings, loaded.append) as worker:
        worker.wait_until_ready()
        with Client(redis_url) as client:
            job_id = client.submit(prompt="old pond", max_tokens=3, ignore_eos=True)
            assert client.result(job_id, timeout=60).tokens_out == 3
        worker.stop()
    assert loaded == [0, 25, 50, 75, 100]
    assert not any("tasks" in child.cmdline() for child in psutil.Process().children())


def test_what_keeps_it_from_loading_is_raised(redis_url: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    settings = Settings(model=str(broken), device="cpu", redis_url=redis_url)
    with LocalWorker(settings, lambda percent: None) as worker:
        with pytest.raises(ModelLoadFailed, match=r"broken\.gguf"):
            worker.wait_until_ready()
        with pytest.raises(EngineLost, match="exited with code 1"):
            worker.stop()
