"""How the time of an engine's steps divides among their parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worker.engine.engine import Engine
from worker.text.grammar.token_matcher import TokenMatcher

SHARED = ("masks", "tokens taken")
"""Parts that llguidance's threads share."""


@dataclass(slots=True)
class PartTimes:
    """Seconds by parts: CPU time on the engine's thread and of all threads, and by the clock."""

    own_s: dict[str, float] = field(default_factory=dict)
    all_s: dict[str, float] = field(default_factory=dict)
    wall_s: dict[str, float] = field(default_factory=dict)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """What calls ``call`` and adds its time to a part; parts may be within others."""

        def run(*arguments: Any, **options: Any) -> Any:
            own, total, wall = time.thread_time(), time.process_time(), time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.wall_s[part] = self.wall_s.get(part, 0.0) + time.perf_counter() - wall
                self.all_s[part] = self.all_s.get(part, 0.0) + time.process_time() - total
                self.own_s[part] = self.own_s.get(part, 0.0) + time.thread_time() - own

        return run

    def watch(self, engine: Engine, matcher: TokenMatcher | None = None) -> None:
        """Time the steps of an engine, and what ``matcher`` and its copies do in them."""
        watched: list[tuple[Any, str, str]] = [
            (engine, "advance", "step"),
            (engine, "_commit", "commit"),
            (engine._scheduler, "plan", "plan"),
            (engine._runner, "launch", "launch"),
            (engine._runner, "draw", "launch"),
            (engine._runner, "collect", "collect"),
        ]
        if matcher is not None:
            watched += [(matcher.batch, "masks", "masks"), (matcher.batch, "take", "tokens taken")]
        for owner, name, part in watched:
            setattr(owner, name, self.timed(part, getattr(owner, name)))

    def watch_wait(self, event: Any) -> None:
        """Time what is waited for the device behind ``event``."""
        event.synchronise = self.timed("device", event.synchronise)

    def clear(self) -> None:
        """Begin anew."""
        for seconds in (self.own_s, self.all_s, self.wall_s):
            seconds.clear()

    def shared_s(self, part: str) -> float:
        """What the other threads did of a part."""
        return max(0.0, self.all_s.get(part, 0.0) - self.own_s.get(part, 0.0))


def told_apart(seconds: dict[str, float]) -> dict[str, float]:
    """Parts that follow each other, of what `PartTimes` has watched."""
    part = {name: seconds.get(name, 0.0) for name in ("plan", "launch", "collect", "commit", "device", *SHARED)}
    whole = seconds.get("step", 0.0)
    return {
        "plan": part["plan"],
        "masks": part["masks"],
        "launch and upload": part["launch"] - part["masks"],
        "waiting for the device": part["device"],
        "collect": part["collect"] - part["device"],
        "tokens taken": part["tokens taken"],
        "commit, with forced tokens": part["commit"] - part["tokens taken"],
        "the rest": whole - part["plan"] - part["launch"] - part["collect"] - part["commit"],
    }
