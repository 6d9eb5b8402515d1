"""A worker as a child process, for the demo and the benchmark: started, waited for, stopped in order."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

import msgspec

from orcd.errors import BY_CODE, EngineLost, OrcdError
from orcd.settings import PREFIX, to_environment
from worker.settings import Settings

LOAD_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
PROGRESS_STEP = 25


class LocalWorker:
    """``orcd worker`` as a child process with these settings and no others; use it in a with block.

    Its log is read for the load progress, of which ``on_load`` gets every 25 %, and for what went wrong.
    """

    def __init__(self, settings: Settings, on_load: Callable[[int], None]) -> None:
        self._settings = replace(settings, log_format="json")
        self._on_load = on_load
        self._loaded = threading.Event()
        self._error: OrcdError | None = None
        self._percent = -PROGRESS_STEP

    def __enter__(self) -> LocalWorker:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks", "worker"],
            env=inherited | to_environment(self._settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the worker in order
        )
        self._reader = threading.Thread(target=self._read_log, name="worker log", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._terminate()
        self._reader.join()

    def wait_until_ready(self) -> None:
        """Raises the error that the worker ended with, or `EngineLost`."""
        if not self._loaded.wait(LOAD_TIMEOUT_S):
            raise EngineLost(f"the worker was not ready after {LOAD_TIMEOUT_S:.0f} s")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the worker in order. Raises `EngineLost` unless it exits with code 0."""
        if code := self._terminate():
            raise EngineLost(f"the worker exited with code {code}")

    def _terminate(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the engine process ends with its parent
            return self._process.wait()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as log:
            for line in log:
                self._read_line(line)
        if not self._loaded.is_set() and self._error is None:
            self._fail(EngineLost.code, "the worker ended before the model was loaded")
        self._loaded.set()

    def _read_line(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            if line.startswith(b"orcd: "):
                self._fail(*line.decode().rstrip().split(": ", 2)[1:])
            return  # a warning of a library
        match event.get("event"):
            case "model_load_progress" if event["percent"] >= self._percent + PROGRESS_STEP:
                self._percent = event["percent"] // PROGRESS_STEP * PROGRESS_STEP
                self._on_load(self._percent)
            case "ready":
                self._loaded.set()
            case "error" if event["level"] == "error":
                self._fail(event["code"], event.get("message", "the engine process ended"))

    def _fail(self, code: str, message: str) -> None:
        self._error = BY_CODE.get(code, OrcdError)(message)
