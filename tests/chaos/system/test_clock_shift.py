from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.system.clock_shift import ClockShift
from tests.chaos.system.redis_service import RedisService


@pytest.fixture
def clock(tmp_path: Path) -> ClockShift:
    clock = ClockShift(tmp_path)
    if clock.why_not:
        pytest.skip(clock.why_not)
    return clock


def test_the_clock_of_redis_jumps_there_and_back(clock: ClockShift) -> None:
    with RedisService(clock.environment("redis")) as service, service.connection() as connection:
        assert abs(connection.time()[0] - time.time()) < 2
        clock.shift("redis", -100)
        assert abs(connection.time()[0] - time.time() + 100) < 2
        clock.shift("redis", 0)
        assert abs(connection.time()[0] - time.time()) < 2


def test_the_clock_of_a_python_process_jumps(clock: ClockShift) -> None:
    environment = clock.environment("worker")
    clock.shift("worker", 1000)
    command = [sys.executable, "-c", "import time; print(time.time())"]
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert abs(float(ran.stdout) - time.time() - 1000) < 5
