"""Errors are in `orcd` since version 0.2: this module says so to whoever imports it."""

raise ModuleNotFoundError("worker.errors is now orcd: from orcd import OrcdError (see CHANGELOG.md)", name=__name__)
