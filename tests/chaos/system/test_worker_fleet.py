from __future__ import annotations

from pathlib import Path

from tests.chaos.system.worker_fleet import WorkerFleet


def test_the_processes_of_a_worker_are_told_apart(redis_url: str, shallow_chat_model: Path, tmp_path: Path) -> None:
    """A fault for engines once hit the process that tokenises, which is a child of the worker, too."""
    with WorkerFleet(redis_url, tmp_path, lease_ms=3000) as fleet:
        worker = fleet.start(shallow_chat_model)
        worker.wait_until_ready(1)
        engine, text_process = worker.engine(), worker.text_process()
        assert engine is not None
        assert text_process is not None
        assert f'"engine_pid":{engine.pid}' in worker.log_path.read_text()
        assert text_process.pid != engine.pid
        fleet.leave(worker)
        assert fleet.check() == []
        assert fleet.workers == []
