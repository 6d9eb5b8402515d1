"""The package `tasks`: where Celery finds the app, and what imports of version 0.1 are told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module

import pytest

import tasks
from tasks.app import default_app
from tests.tasks.worker_process import ROOT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tasks.client", "orcd: from orcd import Client"),
        ("tasks.async_client", "orcd: from orcd import AsyncClient"),
        ("tasks.request", "orcd: from orcd import Request"),
        ("tasks.result", "orcd: from orcd import Result"),
        ("tasks.status", "orcd: from orcd import Status"),
        ("tasks.token_log", "orcd.events: from orcd.events import Token"),
        ("tasks.cli", "orcd.cli: run the command orcd"),
        ("worker.errors", "orcd: from orcd import OrcdError"),
    ],
)
def test_an_import_of_a_module_that_moved_says_where_it_is(old: str, new: str) -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module(old)
    assert str(caught.value) == f"{old} is now {new} (see CHANGELOG.md)"
    assert caught.value.name == old
    module, _, statement = new.partition(": ")
    import_module(module)
    if statement.startswith("from"):
        exec(statement)  # noqa: S102 - a line of the table above


def test_a_module_that_never_was_is_not_found_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'tasks.rabbit'$"):
        import_module("tasks.rabbit")


def test_celery_finds_the_app_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCD_REDIS_URL", "redis://127.0.0.1:1/7")
    monkeypatch.setenv("ORCD_NAME", "demo")
    monkeypatch.setenv("ORCD_LOG_FORMAT", "json")
    default_app.cache_clear()
    try:
        app = tasks.celery
        assert app.conf.broker_url == "redis://127.0.0.1:1/7"
        assert {queue.name for queue in app.conf.task_queues} == {"orcd", "orcd.demo"}
        assert {"orcd.generate", "tasks.generate"} <= app.tasks.keys()
        with pytest.raises(AttributeError, match="no attribute 'rabbit'"):
            _ = tasks.rabbit
    finally:
        default_app.cache_clear()


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_celery_says_in_one_line_that_a_worker_has_a_pool_of_its_own(pool: str) -> None:
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", pool]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (
        2,
        "orcd: INVALID_REQUEST: --pool: a worker of orcd has a pool of its own, one engine's; leave the option out\n",
    )


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ORCD_REDIS_URL", "http://me:CANARY@127.0.0.1", "redis_url: must look like redis://HOST:PORT/DB"),
        ("ORCD_LEASE_MS", "CANARY", "ORCD_LEASE_MS must be a whole number"),
        ("ORCD_NO_SUCH", "CANARY", "unknown environment variable ORCD_NO_SUCH"),
    ],
)
def test_celery_says_in_one_line_that_a_variable_is_malformed(variable: str, value: str, message: str) -> None:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker"]
    ended = subprocess.run(command, env=inherited | {variable: value}, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(f"orcd: INVALID_REQUEST: {re.escape(message)}.*\n", ended.stderr), ended.stderr
    assert "CANARY" not in ended.stderr
