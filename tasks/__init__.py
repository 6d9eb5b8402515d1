"""The Celery side of orcd. ``celery -A tasks ...`` finds the app here, configured from the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery


def __getattr__(name: str) -> Celery:
    # Celery looks for `tasks.celery`. Built on first use: importing the package must not read the environment.
    if name == "celery":
        from tasks.app import default_app

        return default_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
