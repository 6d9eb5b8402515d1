import pytest

from kernels.device import open_device
from worker import health
from worker.contract import Stats
from worker.health import Health


class StubEngine:
    has_work = False
    num_checks = 0
    is_broken = False

    def check_invariants(self) -> None:
        self.num_checks += 1
        assert not self.is_broken, "a block leaked"

    def stats(self, *, memory_bytes: int) -> Stats:
        return Stats(0, 0, 0, 1, 0, 0, 0, 0, 0, memory_bytes)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [100.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: moment[0])
    return moment


def test_it_beats_once_a_second_at_work_and_every_five_when_idle(now: list[float]):
    engine = StubEngine()
    heart = Health(engine, open_device("cpu"))
    assert heart.due_in_s() == 5
    engine.has_work = True
    assert heart.due_in_s() == 1
    now[0] += 1.5
    assert heart.due_in_s() == -0.5
    heart.beat()
    assert heart.due_in_s() == 1


def test_bookkeeping_is_checked_only_when_idle():
    engine = StubEngine()
    heart = Health(engine, open_device("cpu"))
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
        Health(engine, open_device("cpu")).beat()


def test_figures_tell_the_memory_in_use():
    assert Health(StubEngine(), open_device("cpu")).beat().memory_bytes > 1_000_000
