"""What a histogram tells, where many values come at once or were counted elsewhere."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class BucketCounts:
    """How many values are at most each of ``bounds``, with their sum. One thread adds, any may read.

    `prometheus_client.Histogram` takes values one at a time, under a lock: too dear for every token.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, or several that are equal."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def grow(self, counts: Iterable[int], total: float) -> None:
        """Take over what was counted elsewhere: how many for each bound and above all, and the sum of the values."""
        for index, count in enumerate(counts):
            self.counts[index] += count
        self.total += total


class BucketCollector(Collector):
    """Shows `BucketCounts` as the histogram ``name``."""

    def __init__(self, name: str, text: str, labels: Mapping[str, str], counts: BucketCounts) -> None:
        self._name, self._text = name, text
        self._labels = dict(labels)
        self._counts = counts

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The histogram without values."""
        return [HistogramMetricFamily(self._name, self._text, labels=[*self._labels])]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The histogram of this moment."""
        [family] = self.describe()
        num_values, buckets = 0, []
        bounds = [*map(str, map(float, self._counts.bounds)), "+Inf"]
        for bound, count in zip(bounds, self._counts.counts, strict=True):
            num_values += count
            buckets.append((bound, num_values))
        family.add_metric([*self._labels.values()], buckets=buckets, sum_value=self._counts.total)
        return [family]
