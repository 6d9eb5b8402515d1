"""Decode steps as CUDA graphs: one for each number of rows that is worth its own."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

from kernels.batch import first
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


class DecodeGraphs:
    """Runs decode steps over `DecodeRows`: begin, forward, draw."""

    def __init__(
        self, model: Model, cache: KVCache, rows: DecodeRows[DeviceArray], block_tokens: int, *, capture: bool
    ) -> None:
        """``capture`` False launches kernel by kernel instead, with the same results."""
        self.buckets = make_buckets(rows.token_ids.shape[0])
        self._model = model
        self._cache = cache
        self._rows = rows
        self._block_tokens = block_tokens
        self._graphs: dict[int, GpuGraph] = {}
        if capture:
            device = model.device
            assert is_gpu(device)
            for bucket in reversed(self.buckets):
                self._enqueue(bucket)  # the first time loads kernels, which a capture must not
                self._graphs[bucket] = device.capture(partial(self._enqueue, bucket), f"decode step of {bucket} rows")

    def bucket_for(self, num_sequences: int) -> int:
        """The number of rows that a step of this many sequences is run with."""
        return self.buckets[bisect_left(self.buckets, num_sequences)]

    def launch(self, bucket: int) -> None:
        """Enqueue a step over the first ``bucket`` rows. The ids are then in ``rows.drawn``."""
        graph = self._graphs.get(bucket)
        if graph is None:
            self._enqueue(bucket)
        else:
            graph.launch()

    def _enqueue(self, bucket: int) -> None:
        rows = self._rows
        self._model.device.ops.begin_decode(rows, bucket, self._block_tokens)
        logits = self._model.forward(rows.step(bucket), self._cache)
        self._model.device.ops.sample(logits, rows.sampling.first(bucket), out_ids=first(rows.drawn, bucket))


def empty_rows(ops: AnyOps, rows: DecodeRows[DeviceArray], uploads: UploadRing, block_tokens: int) -> None:
    """Make ``rows`` fit to be run: nobody's."""
    num_rows = rows.token_ids.shape[0]
    staging = uploads.take()
    updates = RowUpdates()
    for row in range(num_rows):
        updates.empty(row)
    uploads.send(write_updates(updates, staging), rows.updates)
    ops.begin_decode(rows, num_rows, block_tokens)
