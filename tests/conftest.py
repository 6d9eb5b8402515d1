"""What tests of several packages share, first of all a real Redis, never the one of ``ORCD_REDIS_URL``."""

from __future__ import annotations

import gc
import importlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path

# Before NumPy is imported: its threads spin, and beside the processes that tests start they made tests 10 times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import redis
from hypothesis import HealthCheck, settings

import tasks.demo
from orcd.client import Client
from orcd.store.job_store import JobStore
from tasks.interpreter import MORE_OBJECTS
from tasks.local.redis_server import RedisServer
from tests.models.shallow_model import write_shallow_model
from tests.orcd.job_writer import MakeStore

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LONG_FILE = "test_tokenizer_long_texts.py"
"""In the order of the folders it comes last of those that take long, of which each is run by one process."""
DEMO_MODEL = Path(tasks.demo.__file__).parent / "haiku-q4_k_m.gguf"

# The same examples each time. How long they take says something of the machine only.
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for the whole run; most tests want `redis_url`, which empties it first."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """An empty Redis. Clients of the test before may still be leaving it."""
    return emptied(shared_redis)


def emptied(server: RedisServer) -> str:
    """The URL of the server, emptied. Telling Redis the version of redis-py would take longer."""
    with redis.Redis.from_url(server.url, driver_info=None) as connection:
        connection.flushall()
    return server.url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of the test's own, which it may kill and start again without losing data."""
    with RedisServer(appendonly=True) as server:
        yield server


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, driver_info=None) as connection:
        yield connection


@pytest.fixture
def make_store(connection: redis.Redis) -> MakeStore:
    """JobStores of several workers on the empty Redis."""

    def make(owner: str = "worker-1", *, lease_ms: int = 60_000, ttl_s: int = 600) -> JobStore:
        return JobStore(connection, owner=owner, model="demo", lease_ms=lease_ms, ttl_s=ttl_s)

    return make


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The model that ships with the project."""
    return DEMO_MODEL


@pytest.fixture(scope="session")
def shallow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corner of the first layer of that, under its name: for tests to which it is all the same what a model says.

    Without its chat template, for which each worker would start a process, and log that there is none.
    """
    return write_shallow_model(DEMO_MODEL, tmp_path_factory.mktemp("model") / DEMO_MODEL.name, template=False)


@pytest.fixture(scope="session")
def shallow_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the template: for tests with chats, and for those that look for warnings."""
    return write_shallow_model(DEMO_MODEL, tmp_path_factory.mktemp("model") / DEMO_MODEL.name, template=True)


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until the condition holds, at most so long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """What is collected stays: no garbage is looked for in it, neither now nor in tests, many of which collect all.

    In other objects it is looked for as seldom as in the Celery process: as often as Python does, it took tests a tenth
    of their time.
    """
    gc.disable()
    _import_tests(session.config)
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(MORE_OBJECTS)
        gc.enable()


def _import_tests(config: pytest.Config) -> None:
    """Import all files of tests if this is one of several processes that need them, which begin with different ones.

    So each compiles its share, which takes pytest 10 s for all of them; the others find it compiled.
    """
    share = getattr(config, "workerinput", None)
    if share is None or config.args != config.getini("testpaths"):
        return
    paths = sorted(path.relative_to(ROOT) for path in ROOT.glob("tests/**/test_*.py"))
    begin = len(paths) * int(share["workerid"].removeprefix("gw")) // share["workercount"]
    for path in paths[begin:] + paths[:begin]:
        with suppress(Exception, pytest.skip.Exception):  # collecting says it
            importlib.import_module(".".join(path.with_suffix("").parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files in order, and skip tests for a GPU where there is none."""
    turns = _turns(list(dict.fromkeys(item.path for item in items)))
    items.sort(key=lambda item: turns[item.path])
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpu and (reason := _why_no_gpu()):
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


def _turns(paths: list[Path]) -> dict[Path, float]:
    """Where files come, so that no core waits: those that compute and those that wait for other processes, in turn.

    The files of the Celery process wait longest and begin. So does one that would run alone at the end.
    """
    computing = [path for path in paths if path.relative_to(TESTS).parts[0] in ("worker", "kernels", "orcd")]
    waiting = [path for path in paths if path not in computing]
    computing.reverse()  # what takes longest is in the folder that comes last
    waiting.sort(key=lambda path: not path.is_relative_to(TESTS / "tasks"))
    turns = {path: number / len(files) for files in (computing, waiting) for number, path in enumerate(files)}
    return turns | {path: -1 for path in paths if path.name == LONG_FILE}


def _why_no_gpu() -> str:
    """Why there is no CUDA device for tests; empty if there is one."""
    try:
        from cuda.bindings import driver  # noqa: F401
        from cupy.cuda import runtime

        runtime.getDeviceCount()
    except (ImportError, RuntimeError) as error:
        return f"no CUDA device: {error}"
    return ""
