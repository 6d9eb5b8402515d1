"""The engine of a worker that was started mortal dies of the deadly prompt, and of no other."""

from __future__ import annotations

from pathlib import Path

from orcd.client import Client
from tests.chaos.system.mortal_engine import DEADLY_IDS, mortal_environment
from tests.tasks.worker_process import WorkerProcess


def test_an_engine_dies_of_the_deadly_prompt_only(redis_url: str, shallow_model: Path, tmp_path: Path) -> None:
    variables = mortal_environment(tmp_path)
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as worker, Client(redis_url) as client:
        other = client.submit(prompt_token_ids=[*DEADLY_IDS[1:], 4], max_tokens=8, ignore_eos=True)
        assert client.result(other, timeout=60).state == "succeeded"
        assert worker.events("error") == []
        deadly = client.submit(prompt_token_ids=list(DEADLY_IDS), max_tokens=8, ignore_eos=True)
        result = client.result(deadly, timeout=120)
        assert result.error is not None
        assert result.error.code == "POISONED"
