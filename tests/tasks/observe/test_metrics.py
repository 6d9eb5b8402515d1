"""Figures for Prometheus."""

from __future__ import annotations

from tests.tasks.observe.watched import STATS, Watched
from worker import contract


def test_every_figure_of_the_engine_is_a_metric(watched: Watched) -> None:
    watched.observer.stats(STATS)
    for name in contract.Stats.__struct_fields__:
        assert watched.sample(f"orcd_engine_{name}") == float(getattr(STATS, name)), name
