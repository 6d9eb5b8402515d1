import re
from pathlib import Path

import pytest

from tests.bench.system import main
from tests.tasks.slow_engine import slow_engine


@pytest.fixture(autouse=True)
def steps_take_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Streams last as long on any machine, and leave its processors to other tests."""
    monkeypatch.setenv("PYTHONPATH", slow_engine(tmp_path, step_s=0.01)["PYTHONPATH"])


def test_streams_survive_the_death_of_their_engine(capsys: pytest.CaptureFixture[str], shallow_model: Path) -> None:
    load = ["--streams=3", "--seconds=4", "--prompt-tokens=8", "--output-tokens=250", "--engine-rate=1000"]
    assert main([str(shallow_model), "--device=cpu", *load, "--kill-after=1"]) == 0
    out = capsys.readouterr().out
    assert "3 streams were running, 3 of them completed with each token once" in out
    assert "| the whole system |" in out
    cores = dict(re.findall(r"(Celery|Redis) (\d\.\d\d)", out))
    assert 0 < float(cores["Celery"]) < 4 and float(cores["Redis"]) < 4


def test_several_devices_have_a_worker_each_on_one_redis(
    capsys: pytest.CaptureFixture[str], shallow_model: Path
) -> None:
    load = ["--streams=2", "--seconds=2", "--prompt-tokens=8", "--output-tokens=50", "--engine-rate=1000"]
    assert main([str(shallow_model), "--device=cpu,cpu", *load]) == 0
    out = capsys.readouterr().out
    assert "| 2 x orcd bench engine | 2,000 |" in out
    assert float(re.findall(r"a token took (\d+\.\d) bytes of Redis", out)[0]) > 20


def test_more_clients_than_sequences_run_at_once_leave_jobs_in_the_queue(
    capsys: pytest.CaptureFixture[str], shallow_model: Path
) -> None:
    load = ["--streams=2", "--seconds=2", "--prompt-tokens=8", "--output-tokens=50", "--engine-rate=1000"]
    assert main([str(shallow_model), "--device=cpu", "--clients=5", *load]) == 0
    out = capsys.readouterr().out
    assert "2 streams a device, jobs of 5 clients, " in out
    waited_ms = float(re.findall(r"\| (\d+) / \d+ \| 0 \|\n\n", out)[0])
    assert waited_ms > 100, "most jobs have waited for others"
