"""Imports of version 0.1 fail with the new name."""

from __future__ import annotations

from importlib import import_module

import pytest


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
