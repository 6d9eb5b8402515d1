"""Steps that are not decode steps as CUDA graphs: one for each size that steps are padded to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import AnyArray, SamplingParams, Step, first
from kernels.decode_rows import DecodeRows
from kernels.devices.protocol import is_gpu
from kernels.runtime.device_array import DeviceArray
from worker.engine.cuda.buffers import StepLimits
from worker.engine.cuda.padded_step import PaddedStep, StepSize, size_for, size_for_chunk
from worker.engine.cuda.step_graph import HostedDraw, LateStepGraph, StepGraph, step_parts
from worker.engine.sequence import Chunk, Sequence
from worker.model.kv_cache import KVCache
from worker.model.registry import Model

MOST_GRAPHS = 64
"""With more sizes, the one that was not used for longest is captured anew when it comes again."""


class WholeStepGraphs:
    """Steps from the buffer that they are sent to.

    A size is launched kernel by kernel the first time, and captured the second: many come only once.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        rows: DecodeRows[DeviceArray],
        whole: DeviceArray,
        limits: StepLimits,
        draw: HostedDraw,
    ) -> None:
        """``whole``: bytes, for all arrays of the largest step. Steps leave their ids in ``rows.drawn``."""
        self._model = model
        self._cache = cache
        self._rows = rows
        self._whole = whole
        self._limits = limits
        self._draw = draw
        self._graphs: OrderedDict[StepSize, WholeStepGraph] = OrderedDict()

    def graph_for(self, step: Step[NDArray[Any]]) -> WholeStepGraph | None:
        """The graph for steps like this one; None if it is too large."""
        return self._graph_of(size_for(step, self._limits))

    def graph_for_chunk(self, chunk: Chunk) -> WholeStepGraph | None:
        """The graph for steps that have one such chunk; None if it is too large."""
        return self._graph_of(size_for_chunk(chunk, self._limits))

    def _graph_of(self, size: StepSize | None) -> WholeStepGraph | None:
        if size is None:
            return None
        graph = self._graphs.get(size)
        if graph is None:
            if len(self._graphs) >= MOST_GRAPHS:
                self._graphs.popitem(last=False)
            graph = self._graphs[size] = self._make(size)
        self._graphs.move_to_end(size)
        return graph

    def _make(self, size: StepSize) -> WholeStepGraph:
        device, rows = self._model.device, self._rows
        assert is_gpu(device) and rows.sampling.edits is not None
        padded = PaddedStep(size, self._whole, rows.sampling.edits, has_states=self._limits.has_states)
        step, params, ids = padded.step, padded.params, first(rows.drawn, size.num_sequences)

        def forward() -> AnyArray:
            device.ops.resolve_tokens(step.token_ids, rows.drawn)
            return self._model.forward(step, self._cache)

        parts = step_parts(forward, self._draw, device, params, ids)
        name = f"step of {size.num_tokens} tokens of {size.num_sequences} sequences"
        return WholeStepGraph(LateStepGraph(device, parts, name), padded, size.num_sequences, self._limits.block_tokens)


class WholeStepGraph:
    """Launches steps of one size."""

    def __init__(self, graph: StepGraph, padded: PaddedStep, num_rows: int, block_tokens: int) -> None:
        self.num_rows = num_rows
        """Rows of logits, of which those of padding come last."""
        self.sent = padded.memory
        """What is sent of a step, as bytes on the device."""
        self._graph = graph
        self._padded = padded
        self._block_tokens = block_tokens

    def write(self, step: Step[NDArray[Any]], params: SamplingParams[NDArray[Any]], staging: NDArray[np.uint8]) -> None:
        """Write what is sent of ``step``, whose tokens are drawn with ``params``."""
        self._padded.write(step, params, staging)

    def write_chunk(self, chunk: Chunk, edit_row_of: Callable[[Sequence], int], staging: NDArray[np.uint8]) -> None:
        """Write what is sent of a step of one chunk; see `PaddedStep.write_chunk`."""
        self._padded.write_chunk(chunk, edit_row_of, self._block_tokens, staging)

    def launch(self) -> None:
        """Enqueue the step that was sent."""
        self._graph.launch()

    def launch_forward(self) -> None:
        """Enqueue it up to its logits; `launch_draw` is to come next."""
        self._graph.launch_forward()

    def launch_draw(self, *, reports: bool) -> None:
        """Enqueue the rest of it, with log probabilities of what is drawn only if it ``reports`` them."""
        self._graph.launch_draw(reports=reports)
