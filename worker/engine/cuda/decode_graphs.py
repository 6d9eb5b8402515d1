"""Decode steps as CUDA graphs: one for each number of rows that is worth its own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from kernels.batch import AnyArray, GreedyDraw, PrefixGroups, first, view
from kernels.decode_rows import DecodeRows, RowUpdates, write_updates
from kernels.devices.protocol import AnyOps, is_gpu
from kernels.ops.attention import depends_on_context
from kernels.ops.attention_plan import SHORT_CONTEXT
from kernels.runtime.device_array import DeviceArray
from worker.engine.cuda.pinned_ring import UploadRing
from worker.engine.cuda.prefix_grouping import prefixes_in
from worker.engine.cuda.step_graph import HostedDraw, LateStepGraph, StepGraph, step_parts
from worker.model.kv_cache import KVCache
from worker.model.registry import Model

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192)


def make_buckets(most: int) -> tuple[int, ...]:
    """Numbers of rows up to ``most``, spaced so that few rows without a sequence are computed."""
    larger = range(256, most, 128)
    return (*(bucket for bucket in (*BUCKETS, *larger) if bucket < most), most)


def short_contexts(model: Model, buckets: Sequence[int]) -> dict[int, int]:
    """Contexts up to which steps of some ``buckets`` run otherwise than beyond.

    Where all layers run in one kernel that is the length of the longest sequence, else the mean.
    """
    config, device = model.config, model.device
    assert is_gpu(device)
    heads = config.num_kv_heads, config.head_dim
    limits = {bucket: SHORT_CONTEXT for bucket in buckets if depends_on_context(device.gpu, *heads, bucket)}
    return limits | {bucket: limit for bucket, limit in model.one_kernel_contexts.items() if bucket in buckets}


class DecodeGraphs:
    """The decode steps over `DecodeRows`: begin, forward, draw."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        rows: DecodeRows[DeviceArray],
        block_tokens: int,
        draw: HostedDraw,
        prefixes: DeviceArray,
        host_ids: Sequence[NDArray[np.uint8]],
        *,
        capture: bool,
    ) -> None:
        """``capture`` False launches kernel by kernel instead, with the same results.

        ``prefixes``: bytes, the groups of steps that have some (`worker.engine.cuda.prefix_grouping`). ``host_ids``:
        bytes, page-locked, into one of which the shortest steps put their ids themselves.
        """
        self.buckets = make_buckets(rows.token_ids.shape[0])
        self._model = model
        self._cache = cache
        self._rows = rows
        self._block_tokens = block_tokens
        self._draw = draw
        self._prefixes = prefixes_in(prefixes)
        kind = LateStepGraph if capture else StepGraph
        few = [bucket for bucket in self.buckets if bucket in model.one_kernel_contexts]

        def in_one_kernel(*, is_greedy: bool = False, continues: bool = False) -> dict[int, list[StepGraph]]:
            own = {"is_greedy": is_greedy, "continues": continues}
            return {bucket: [self._graph(bucket, kind, host_ids=ids, **own) for ids in host_ids] for bucket in few}

        self._one_kernel_graphs = self._greedy_graphs = self._continuing_graphs = in_one_kernel()
        if model.draws_in_one_kernel:
            self._greedy_graphs = in_one_kernel(is_greedy=True)
            self._continuing_graphs = in_one_kernel(is_greedy=True, continues=True)
        self._graphs = {bucket: self._graph(bucket, kind) for bucket in self.buckets if bucket not in few}
        self._sharing_graphs = {bucket: self._graph(bucket, kind, shares=True, is_long=True) for bucket in self.buckets}
        self.short_contexts = short_contexts(model, self.buckets)
        self._long_graphs = {bucket: self._graph(bucket, kind, is_long=True) for bucket in self.short_contexts}
        if capture:
            alike = [*self._one_kernel_graphs.values(), *([graph] for graph in self._graphs.values())]
            for first_graph, *others in reversed(alike):
                first_graph.launch_forward()  # the parts are captured when they are wanted: a start is done sooner
                first_graph.launch_draw(reports=True)
                for graph in (first_graph, *others):
                    graph.capture_step()

    def bucket_for(self, num_sequences: int) -> int:
        """The number of rows that a step of this many sequences is run with."""
        return self.buckets[bisect_left(self.buckets, num_sequences)]

    def graph(
        self, bucket: int, *, shares: bool, context: int, turn: int, is_greedy: bool, has_updates: bool
    ) -> StepGraph:
        """The step over the first ``bucket`` rows, maybe with prefix groups. It leaves its ids in ``rows.drawn``.

        ``context``, where `short_contexts` has the bucket: about how many tokens the longest of up to
        ``most_in_one_kernel`` sequences has, or the mean of more of them. ``turn``: which of ``host_ids`` is for the
        step. ``is_greedy``: its rows all take the largest logit, and nothing edits these. ``has_updates``: the host has
        sent some for it.
        """
        is_long = bucket in self.short_contexts and context > self.short_contexts[bucket]
        if bucket in self._one_kernel_graphs and not is_long:
            graphs = self._one_kernel_graphs  # in one kernel, in which each attends alone
            if is_greedy:
                graphs = self._greedy_graphs if has_updates else self._continuing_graphs
            return graphs[bucket][turn]
        if shares:
            return self._sharing_graphs[bucket]
        return (self._long_graphs if is_long else self._graphs)[bucket]

    @property
    def most_in_one_kernel(self) -> int:
        """The most sequences of a step that may run all layers in one kernel."""
        return max((bucket for bucket in self.buckets if bucket in self._model.one_kernel_contexts), default=0)

    def _graph(
        self,
        bucket: int,
        kind: type[StepGraph],
        *,
        shares: bool = False,
        is_long: bool = False,
        host_ids: NDArray[np.uint8] | None = None,
        is_greedy: bool = False,
        continues: bool = False,
    ) -> StepGraph:
        device, rows = self._model.device, self._rows
        assert is_gpu(device)
        params, ids = rows.sampling.first(bucket), first(rows.drawn, bucket)
        sent = None if host_ids is None else host_ids.view(np.int32)[:bucket]
        positions = params.output_positions if continues else None
        greedy = GreedyDraw(ids, sent, positions) if is_greedy else None
        step = replace(rows.step(bucket), has_long_context=is_long, greedy=greedy)
        if shares:
            prefixes = PrefixGroups(self._prefixes.groups, first(self._prefixes.members, bucket))
            step = replace(step, prefixes=prefixes)

        def forward() -> AnyArray:
            if not continues:
                device.ops.begin_decode(rows, bucket, self._block_tokens)
            return self._model.forward(step, self._cache)

        parts = step_parts(forward, self._draw, device, params, ids, sent, draws=not is_greedy)
        return kind(device, parts, f"decode step of {bucket} rows")


def empty_rows(ops: AnyOps, rows: DecodeRows[DeviceArray], uploads: UploadRing, block_tokens: int) -> None:
    """Make ``rows`` fit to be run: nobody's."""
    counting = np.arange(rows.counting.shape[0], dtype=np.int32)
    uploads.take()[: counting.nbytes].view(np.int32)[:] = counting
    uploads.send(view(rows.counting, 0, (counting.nbytes,), np.uint8))
    num_rows = rows.token_ids.shape[0]
    staging = uploads.take()
    updates = RowUpdates()
    for row in range(num_rows):
        updates.empty(row)
    uploads.send(first(rows.updates, write_updates(updates, staging)))
    ops.begin_decode(rows, num_rows, block_tokens)
