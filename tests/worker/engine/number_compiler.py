"""A compiler of grammars that are numbers."""

from __future__ import annotations

import threading

from orcd.errors import InvalidRequest
from tests.worker.engine.bracket_constraint import BracketConstraint


class NumberCompiler:
    """Compiles a number to a constraint of so many ids, once it is let."""

    def __init__(self, *, is_held: bool = False) -> None:
        self.compiled: list[str] = []
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        if not is_held:
            self.may_go_on.set()

    def __call__(self, grammar: str) -> BracketConstraint:
        self.has_begun.set()
        self.may_go_on.wait(60)
        self.compiled.append(grammar)
        match grammar:
            case "refused":
                raise InvalidRequest("no such rule")
            case "broken":
                raise ValueError("secret")
            case "deadly":
                raise SystemExit("secret")
        return BracketConstraint(int(grammar))
