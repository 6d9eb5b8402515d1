"""Flower as ``orcd flower`` starts it: with a password, read-only, and with the queues that nobody serves."""

from __future__ import annotations

import difflib
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flower.command
import flower.events
import redis
from flower.options import DEFAULT_CONFIG_FILE
from flower.views import BaseHandler
from tornado.ioloop import IOLoop
from tornado.options import Error, options

from orcd.errors import InvalidRequest
from orcd.store.redis_connection import connect
from tasks.app import create_app
from worker.settings import Settings

USER = "orcd"
MOST_LISTS = 10_000
MOST_PORT = 65_535
MOST_PAUSE_S = 10.0
"""Between two tries to hear what happens to tasks, while Redis is away."""
_LOGINS = {"auth", "basic_auth", "auth_provider"}


class FlowerProgram:
    """Flower with a worker's settings. ``arguments`` are Flower's own, as are FLOWER_ variables and its options file.

    Where these do not say who may see it, it makes up a password and tells that to the terminal.
    """

    def __init__(
        self, settings: Settings, arguments: Sequence[str], environment: Mapping[str, str] = os.environ
    ) -> None:
        self._settings = settings
        self._arguments = list(arguments)
        prefix = "FLOWER_"
        variables = {name: text for name, text in environment.items() if name.startswith(prefix)}
        self._given = {name.removeprefix(prefix).lower(): text for name, text in variables.items()}
        for argument in arguments:
            name, _, text = argument.lstrip("-").partition("=")
            self._given[name.replace("-", "_")] = text

    def run(self) -> int:
        """Serve until it is told to stop; returns the exit code. Raises `InvalidRequest` for an option or its value."""
        self._check()
        app = create_app(self._settings)  # without the worker's tasks, which Flower has no use for
        arguments = ["flower", *self._defaults(), *self._arguments]
        with connect(self._settings) as connection:
            show_all_queues(connection, self._settings.key_prefix)
            listen_again_soon()
            flower.command.sigterm_handler = stop_serving
            try:
                exit_code: int = app.start(arguments) or 0
            except (Error, OSError, ValueError) as error:  # a value of an option, or a port that is taken
                raise InvalidRequest(f"flower: {error}") from None
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends what is left to do
            return exit_code

    def _check(self) -> None:
        """Raises `InvalidRequest` for what Flower passes over: unknown options, and values that let nobody in."""
        for number, argument in enumerate(self._arguments, 1):
            name = argument.lstrip("-").partition("=")[0]
            if not argument.startswith("-"):
                # Only its number is told: it may be the password behind an option that was written with a space.
                raise InvalidRequest(f"flower: argument {number} is no option; they are written --NAME=VALUE")
            if name not in options:
                similar = difflib.get_close_matches(name, options, 1)
                meant = f"did you mean --{similar[0]}?" if similar else "docs/flower.md says where they are listed"
                raise InvalidRequest(f"flower: there is no option --{name}; {meant}")

        port = self._given.get("port", "")
        if port.isdecimal() and int(port) > MOST_PORT:
            raise InvalidRequest(f"flower: port: must be at most {MOST_PORT}")
        logins = self._given.get("basic_auth")
        if logins and not all(":" in login for login in logins.split(",")):
            raise InvalidRequest(
                "flower: basic_auth: must be USER:PASSWORD, or several of these with commas between them"
            )

    def _defaults(self) -> list[str]:
        """Options for what nobody has said. A file of options is taken to say all."""
        if "conf" in self._given or Path(DEFAULT_CONFIG_FILE).exists():
            return []
        read_only = [] if "read_only" in self._given else ["--read-only"]
        if self._given.keys() & _LOGINS:
            return read_only
        if not sys.stderr.isatty():
            raise InvalidRequest(
                "flower: it needs a password: set FLOWER_BASIC_AUTH=USER:PASSWORD, or give --basic-auth"
            )
        password = secrets.token_urlsafe(12)
        print(
            f"Flower's user is {USER}, its password {password} (--basic-auth=USER:PASSWORD is another)", file=sys.stderr
        )
        return [*read_only, f"--basic-auth={USER}:{password}"]


def stop_serving(*_: object) -> None:
    """Have Flower end once its event loop runs, at any time from when it waits for SIGTERM.

    Its own handler raises SystemExit, which is lost where the signal finds code that passes over exceptions.
    """
    loop = IOLoop.current()
    loop.add_callback_from_signal(loop.stop)


def listen_again_soon() -> None:
    """Bound the pauses of Flower while Redis is away: they double without end, and it hears nothing as long again."""
    flower.events.time = SimpleNamespace(
        monotonic=time.monotonic, sleep=lambda seconds: time.sleep(min(seconds, MOST_PAUSE_S))
    )


def show_all_queues(connection: Any, key_prefix: str) -> None:
    """Have Flower list all our queues that hold messages. By itself it knows only those that some worker serves."""
    of_workers = BaseHandler.get_active_queue_names

    def of_all(handler: BaseHandler) -> list[str]:
        try:
            lists = connection.scan_iter(f"{key_prefix}orcd*", count=1000, _type="list")
            names = [key.decode(errors="replace").removeprefix(key_prefix) for key in islice(lists, MOST_LISTS)]
        except redis.RedisError:
            names = []
        ours = {name.partition(":")[0] for name in names}
        return sorted({*of_workers(handler), *(name for name in ours if name == "orcd" or name.startswith("orcd."))})

    BaseHandler.get_active_queue_names = of_all
