"""Decode steps as CUDA graphs: one for each number of rows that is worth its own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kernels.batch import AnyArray, SamplingParams, first
from kernels.decode_rows import DecodeRows, RowUpdates, write_updates
from kernels.devices.protocol import AnyOps, GpuGraph, is_gpu
from kernels.runtime.device_array import DeviceArray
from worker.engine.cuda.pinned_ring import UploadRing
from worker.model.kv_cache import KVCache
from worker.model.registry import Model

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192)


def make_buckets(most: int) -> tuple[int, ...]:
    """Numbers of rows up to ``most``, spaced so that few rows without a sequence are computed."""
    larger = range(256, most, 128)
    return (*(bucket for bucket in (*BUCKETS, *larger) if bucket < most), most)


Draw = Callable[[AnyArray, SamplingParams[DeviceArray]], None]
"""What enqueues the draw from logits [R, vocab], with all that the host takes part in."""


@dataclass(frozen=True, slots=True)
class BucketGraphs:
    """The graphs of steps of one number of rows: whole, or in two parts."""

    step: GpuGraph
    forward: GpuGraph
    draw: GpuGraph


class DecodeGraphs:
    """Runs decode steps over `DecodeRows`: begin, forward, draw.

    A step is one graph, or two where the host takes part in the draw: it does so while the first one runs.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        rows: DecodeRows[DeviceArray],
        block_tokens: int,
        draw: Draw,
        *,
        capture: bool,
    ) -> None:
        """``capture`` False launches kernel by kernel instead, with the same results."""
        self.buckets = make_buckets(rows.token_ids.shape[0])
        self._model = model
        self._cache = cache
        self._rows = rows
        self._block_tokens = block_tokens
        self._draw = draw
        self._logits: AnyArray | None = None  # of the step whose draw is to be launched, where nothing was captured
        self._graphs: dict[int, BucketGraphs] = {}
        if capture:
            for bucket in reversed(self.buckets):
                self._graphs[bucket] = self._capture(bucket)

    def bucket_for(self, num_sequences: int) -> int:
        """The number of rows that a step of this many sequences is run with."""
        return self.buckets[bisect_left(self.buckets, num_sequences)]

    def launch(self, bucket: int) -> None:
        """Enqueue a step over the first ``bucket`` rows. The ids are then in ``rows.drawn``."""
        graphs = self._graphs.get(bucket)
        if graphs is None:
            self._enqueue(bucket)
        else:
            graphs.step.launch()

    def launch_forward(self, bucket: int) -> None:
        """Enqueue a step up to its logits; `launch_draw` is to come next."""
        graphs = self._graphs.get(bucket)
        if graphs is None:
            self._logits = self._forward(bucket)
        else:
            graphs.forward.launch()

    def launch_draw(self, bucket: int) -> None:
        """Enqueue the rest of the step."""
        graphs = self._graphs.get(bucket)
        if graphs is None:
            assert self._logits is not None, "a draw without logits"
            self._draw(self._logits, self._rows.sampling.first(bucket))
        else:
            graphs.draw.launch()

    def _capture(self, bucket: int) -> BucketGraphs:
        device = self._model.device
        assert is_gpu(device)
        params = self._rows.sampling.first(bucket)
        logits = [self._forward(bucket)]
        self._draw(logits[0], params)  # the first time loads kernels, which a capture must not
        step = device.capture(partial(self._enqueue, bucket), f"decode step of {bucket} rows")
        forward = device.capture(lambda: logits.append(self._forward(bucket)), f"forward pass of {bucket} rows")
        draw = device.capture(partial(self._draw, logits[-1], params), f"draw of {bucket} rows")
        return BucketGraphs(step, forward, draw)

    def _enqueue(self, bucket: int) -> None:
        params, ids = self._rows.sampling.first(bucket), first(self._rows.drawn, bucket)
        self._model.device.ops.sample(self._forward(bucket), params, out_ids=ids)

    def _forward(self, bucket: int) -> AnyArray:
        self._model.device.ops.begin_decode(self._rows, bucket, self._block_tokens)
        return self._model.forward(self._rows.step(bucket), self._cache)


def empty_rows(ops: AnyOps, rows: DecodeRows[DeviceArray], uploads: UploadRing, block_tokens: int) -> None:
    """Make ``rows`` fit to be run: nobody's."""
    num_rows = rows.token_ids.shape[0]
    staging = uploads.take()
    updates = RowUpdates()
    for row in range(num_rows):
        updates.empty(row)
    uploads.send(write_updates(updates, staging), rows.updates)
    ops.begin_decode(rows, num_rows, block_tokens)
