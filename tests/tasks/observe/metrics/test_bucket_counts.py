"""Histograms of many values at once."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from tasks.observe.metrics.bucket_counts import BucketCollector, BucketCounts

BOUNDS = (0.5, 1, 2)


def test_it_tells_what_prometheus_own_histogram_does() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = BucketCounts(BOUNDS)
    ours.register(BucketCollector("size", "Sizes", {"model": "m"}, counts))
    histogram = Histogram("size", "Sizes", ["model"], registry=theirs, buckets=BOUNDS).labels(model="m")
    for value, times in ((0.5, 1), (0.75, 3), (2, 1), (7, 2)):
        counts.add(value, times)
        for _ in range(times):
            histogram.observe(value)
    assert generate_latest(ours) == generate_latest(theirs)


def test_what_was_counted_elsewhere_is_added() -> None:
    counts = BucketCounts(BOUNDS)
    counts.add(1)
    counts.grow([1, 2, 0, 3], 25)
    assert (counts.counts, counts.total) == ([1, 3, 0, 3], 26)
