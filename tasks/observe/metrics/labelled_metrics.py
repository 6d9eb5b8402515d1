"""Metrics for Prometheus that all carry the same labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest

from tasks.observe.metrics.bucket_counts import BucketCollector, BucketCounts

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside each counter, which nobody reads


class LabelledMetrics:
    """Makes metrics in a ``registry`` of its own, each with ``labels`` and, where it is said, one more label."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        self._labels = dict(labels)

    def counter(self, name: str, text: str) -> Counter:
        """A counter; ``_total`` follows its name."""
        return Counter(name, text, [*self._labels], registry=self.registry).labels(**self._labels)

    def gauge(self, name: str, text: str) -> Gauge:
        """A gauge."""
        return Gauge(name, text, [*self._labels], registry=self.registry).labels(**self._labels)

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> BucketCounts:
        """A histogram with these upper bounds, to which one thread adds."""
        counts = BucketCounts(bounds)
        self.buckets(name, text, counts)
        return counts

    def buckets(self, name: str, text: str, counts: BucketCounts) -> None:
        """A histogram of what is counted in ``counts``."""
        self.registry.register(BucketCollector(name, text, self._labels, counts))

    def counter_by(self, label: str, name: str, text: str, values: Sequence[str] = ()) -> Callable[[str], Counter]:
        """Counters by the value of ``label``; those of ``values`` are there from the start, at 0."""
        family = Counter(name, text, [*self._labels, label], registry=self.registry)

        @cache
        def of(value: str) -> Counter:
            return family.labels(**self._labels, **{label: value})

        for value in values:
            of(value)
        return of

    def page(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)
