"""The Celery process: takes messages, claims jobs, runs them on its engine, writes token logs.

``celery -A tasks ...`` finds the app here, configured from the environment.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

_MOVED = {
    "tasks.async_client": "orcd: from orcd import AsyncClient",
    "tasks.cli": "orcd.cli: run the command orcd",
    "tasks.client": "orcd: from orcd import Client",
    "tasks.request": "orcd: from orcd import Request",
    "tasks.result": "orcd: from orcd import Result",
    "tasks.status": "orcd: from orcd import Status",
    "tasks.token_log": "orcd.events: from orcd.events import Token",
}
"""What applications imported from here up to version 0.1."""


class _MovedModules:
    """Asked for a module that was not found: says where it is now."""

    def find_spec(self, name: str, _path: Any, _target: Any = None) -> None:
        if name in _MOVED:
            raise ModuleNotFoundError(f"{name} is now {_MOVED[name]} (see CHANGELOG.md)", name=name)


sys.meta_path.append(_MovedModules())


def __getattr__(name: str) -> Celery:
    # Celery looks for `tasks.celery`. Built on first use: importing the package must not read the environment.
    if name == "celery":
        from orcd.cli.command_line import report_error
        from orcd.errors import OrcdError
        from tasks.app import default_app

        try:
            return default_app()
        except OrcdError as error:  # Celery would print a traceback
            sys.exit(report_error(error))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
