import io
import json

import pytest

from kernels.devices.open import open_device
from kernels.devices.protocol import Device
from worker import health
from worker.contract import Stats
from worker.health import Health
from worker.log import EventLog


class Gpu:
    """A device whose memory is where the test says."""

    name = "cuda:0"

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.num_checks = 0

    def memory_bytes(self) -> int:
        return 1 << 30

    def verify_residency(self) -> list[str]:
        self.num_checks += 1
        return list(self.problems)


class StubEngine:
    has_work = False
    num_checks = 0
    is_broken = False

    def check_invariants(self) -> None:
        self.num_checks += 1
        assert not self.is_broken, "a block leaked"

    def stats(self, *, memory_bytes: int) -> Stats:
        return Stats(0, 0, 0, 1, 0, 0, 0, 0, 0, memory_bytes)


def health_of(
    engine: StubEngine, device: Device | None = None, log: io.StringIO | None = None, check_every_s: float = 60
) -> Health:
    events = EventLog("json", "engine-1", log or io.StringIO())
    return Health(engine, device or open_device("cpu"), events, check_every_s)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [100.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: moment[0])
    return moment


def test_it_beats_once_a_second_at_work_and_every_five_when_idle(now: list[float]):
    engine = StubEngine()
    heart = health_of(engine)
    assert heart.due_in_s() == 5
    engine.has_work = True
    assert heart.due_in_s() == 1
    now[0] += 1.5
    assert heart.due_in_s() == -0.5
    heart.beat()
    assert heart.due_in_s() == 1


def test_bookkeeping_is_checked_only_when_idle():
    engine = StubEngine()
    heart = health_of(engine)
    engine.has_work = True
    heart.beat()
    assert engine.num_checks == 0
    engine.has_work = False
    heart.beat()
    assert engine.num_checks == 1


def test_broken_bookkeeping_is_not_lived_with():
    engine = StubEngine()
    engine.is_broken = True
    with pytest.raises(AssertionError, match="leaked"):
        health_of(engine).beat()


def test_figures_tell_the_memory_in_use():
    assert health_of(StubEngine()).beat().memory_bytes > 1_000_000


def test_memory_is_checked_at_the_first_beat_and_then_every_minute(now: list[float]):
    gpu = Gpu()
    heart = health_of(StubEngine(), gpu)
    assert heart.beat().healthy
    assert gpu.num_checks == 1
    for seconds, num_checks in ((59, 1), (60, 2), (100, 2), (121, 3)):
        now[0] = 100 + seconds
        heart.beat()
        assert gpu.num_checks == num_checks


def test_it_is_checked_once_only_where_the_setting_says_so(now: list[float]):
    gpu = Gpu()
    heart = health_of(StubEngine(), gpu, check_every_s=0)
    for _ in range(3):
        heart.beat()
        now[0] += 1e9
    assert gpu.num_checks == 1


def test_memory_that_is_elsewhere_makes_the_engine_unhealthy_until_it_is_back(now: list[float]):
    gpu, log = Gpu(), io.StringIO()
    heart = health_of(StubEngine(), gpu, log)
    assert heart.beat().healthy
    gpu.problems = ["kv cache is managed memory", *(f"buffer {number} is host memory" for number in range(4))]
    now[0] += 60
    for _ in range(2):
        assert not heart.beat().healthy
        now[0] += 30
    gpu.problems = []
    now[0] += 60
    assert heart.beat().healthy
    first, second = map(json.loads, log.getvalue().splitlines())
    assert (first["event"], first["level"], first["code"], first["device"]) == (
        "error",
        "error",
        "CUDA_ERROR",
        "cuda:0",
    )
    assert "kv cache is managed memory; buffer 0" in first["message"]
    assert "and 2 more" in first["message"]
    assert second["event"] == "healthy"


def test_the_time_of_steps_is_added_up(now: list[float]) -> None:
    heart = health_of(StubEngine())

    def step() -> None:
        now[0] += 0.25

    heart.timed(step)
    heart.timed(step)
    stats = heart.beat()
    assert stats.step_s == 0.5
    assert 0 <= stats.host_s < 5
