"""Runs steps on a CUDA device, ahead of what the host knows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Series
from functools import partial
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from kernels.batch import AnyArray, SamplingParams, Step, first, view
from kernels.decode_rows import write_updates
from kernels.devices.protocol import is_gpu
from kernels.errors import CudaFailure
from kernels.runtime.device_array import DeviceArray
from orcd.errors import CudaError, OrcdError, places
from worker.engine.batch_builder import (
    PromptTokens,
    build_sampling_params,
    build_step,
    is_known,
    only_decodes,
    prompt_tokens,
)
from worker.engine.cuda.buffers import StepBuffers, StepLimits
from worker.engine.cuda.decode_graphs import DecodeGraphs, empty_rows
from worker.engine.cuda.launched_step import Draw, LaunchedStep, StepTimes, without
from worker.engine.cuda.logit_processing import Drawing, EditSender, LogitMasker, LogprobReporter, Reports, hosted_draw
from worker.engine.cuda.pinned_ring import NUM_BUFFERS, Download, DownloadRing, UploadRing
from worker.engine.cuda.prefix_grouping import PrefixGrouping
from worker.engine.cuda.slot_allocator import SlotAllocator
from worker.engine.cuda.step_arrays import send_step
from worker.engine.cuda.whole_step_graphs import WholeStepGraph, WholeStepGraphs
from worker.engine.logits.edit_rows import EditRows
from worker.engine.runner import Results
from worker.engine.scheduler import MANY
from worker.engine.sequence import Chunk, Sequence
from worker.model.registry import Model

LONG_WAIT_S = 0.003
"""Where the host waits so long, a second step is work enough for the device, and requests that come now start sooner.
Else there is a third, of many sequences a fourth: to start requests takes the host longer than a short step lasts."""


class CudaRunner:
    """A model and its KV cache on a device that works by itself.

    A step of which every chunk only decodes is a graph: what it needs is on the device already, but for what changed
    (`SlotAllocator`). Other steps are sent whole; where they are not too large, each size is a graph too. A graph comes
    in two parts where the host writes masks of tokens between them, or reads log probabilities. All steps leave the ids
    that they drew in ``rows.drawn``, where the next step finds them, and count them for penalties.
    """

    def __init__(
        self,
        model: Model,
        limits: StepLimits,
        *,
        num_blocks: int,
        timeout_s: float,
        num_states: int = 0,
        capture: bool = True,
    ) -> None:
        """``timeout_s``: how long a step may take. ``capture`` False: no graphs, with the same results.

        ``num_states``: see `worker.engine.scheduler.Scheduler`.
        """
        self._model, device = model, model.device
        assert is_gpu(device)
        self._ops = device.ops
        self._limits = limits
        self._timeout_s = timeout_s
        buffers = StepBuffers.allocate(device.step_buffers, limits)
        self._rows = buffers.rows
        self._whole = buffers.whole
        self._edits = self._rows.sampling.edits
        assert self._edits is not None, "rows without edits"
        self._edit_sender = EditSender(device, self._edits, buffers.resets, timeout_s)
        self._logit_masker = LogitMasker(
            device, buffers.masks, max_rows=limits.max_sequences, vocab_size=limits.vocab_size, timeout_s=timeout_s
        )
        self._logprob_reporter = LogprobReporter(device, buffers.reports)
        draw = self._hosted_draw = hosted_draw(device, self._logit_masker, self._logprob_reporter, self._rows.drawn)
        self._uploads = UploadRing(device, max(limits.whole_step_bytes, self._rows.updates.shape[0]), timeout_s)
        self._downloads = DownloadRing(device, limits.max_sequences * 4)
        host_ids = self._downloads.buffers
        self._prefix_grouping = PrefixGrouping(model, buffers.prefixes, limits.block_tokens, timeout_s)
        self._cache = model.allocate_cache(num_blocks, limits.block_tokens, num_states)
        self._forget_rows()
        self._in_flight, self._times = deque[LaunchedStep](), StepTimes()
        self._late_draw: Draw | None = None  # of the step that was launched up to its logits
        self._drawing, self._drawing_rows = Drawing({}), np.empty(0, np.intp)  # of the last that draws behind a graph
        self._decoding, self._draws_in_graph, self._is_greedy = list[Chunk](), True, True  # the last decode step
        try:
            empty_rows(device.ops, self._rows, self._uploads, limits.block_tokens)
            self._logit_masker.send([], [])
            self._graphs = DecodeGraphs(
                model, self._cache, self._rows, limits.block_tokens, draw, buffers.prefixes, host_ids, capture=capture
            )
        except CudaFailure as error:  # it names the kernel
            raise CudaError(str(error)) from error
        self._whole_graphs = None
        if capture:
            self._whole_graphs = WholeStepGraphs(model, self._cache, self._rows, self._whole, limits, draw)

    @property
    def depth(self) -> int:
        """Steps that may be in flight now."""
        return 2 if self._times.waited_s > LONG_WAIT_S else NUM_BUFFERS - (len(self._decoding) < MANY)

    def has_time(self, share: float) -> bool:
        """See `worker.engine.runner.Runner`."""
        return self._times.has_time(share)

    def launch(self, chunks: list[Chunk], *, draws: bool = True) -> None:
        """Enqueue a step. Raises `CudaError`, and nothing else of a model with recurrent layers."""
        assert self._late_draw is None, "a step before this one that nobody has drawn from"
        self._times.launch(self._in_flight)
        try:
            is_decode = chunks is self._decoding or only_decodes(chunks)
            draw = self._decode(chunks) if is_decode else self._run_whole(chunks)
            if draws:
                self._in_flight.append(draw(()))
            else:
                self._late_draw = draw
        except Exception as error:
            self._forget_after(error)
            raise

    def draw(self, void: Collection[Sequence]) -> None:
        """Enqueue the rest of the step that was launched up to its logits. Raises what `launch` does."""
        draw, self._late_draw = self._late_draw, None
        assert draw is not None, "a step that was drawn from"
        try:
            self._in_flight.append(draw(void))
        except Exception as error:
            self._forget_after(error)
            raise

    def collect(self) -> Results:
        """Wait for the oldest step in flight; a result for each of its chunks. Raises `CudaError`."""
        step = self._in_flight.popleft()
        try:
            ids = self._times.read_ids(step, self._timeout_s)
            return step.results(ids, self._timeout_s)
        except CudaFailure as error:
            raise CudaError(str(error)) from error

    def _decode(self, chunks: list[Chunk]) -> Draw:
        if chunks is not self._decoding:
            self._decoding, self._draws_in_graph = chunks, all(each.draws_in_graph for each, _, _ in chunks)
            self._is_greedy = all(each.takes_largest for each, _, _ in chunks)
        num_rows = self._graphs.bucket_for(len(chunks))
        rows, updates = self._batch_slots.allocate(chunks, num_rows)
        self._send_resets()
        if updates:
            self._uploads.send(first(self._rows.updates, write_updates(updates, self._uploads.take())))
        if updates.rows:  # else these are the sequences of the step before
            self._prefix_grouping.send(chunks, rows.tolist())
        context = 0
        if num_rows <= self._graphs.most_in_one_kernel:
            context = max(each.num_tokens for each, _, _ in chunks)
        elif num_rows in self._graphs.short_contexts:
            context = self._batch_slots.mean_context
        kind = {"shares": self._prefix_grouping.has_sent, "is_greedy": self._is_greedy, "has_updates": bool(updates)}
        graph = self._graphs.graph(num_rows, context=context, turn=self._downloads.turn, **kind)
        if self._draws_in_graph:
            graph.launch()
            ids = self._downloads.expect(num_rows * 4) if graph.tells_host else self._fetch(num_rows)
            return lambda _: LaunchedStep(rows, ids)
        graph.launch_forward()
        if rows is not self._drawing_rows:
            self._drawing_rows = rows
            self._drawing = Drawing({row: each for row, (each, _, _) in zip(rows.tolist(), chunks, strict=True)})
        drawing = self._drawing

        def draw(void: Collection[Sequence]) -> LaunchedStep:
            errors = self._send_masks(drawing, void)
            graph.launch_draw(reports=drawing.reports)
            reports = self._fetch_reports(drawing, num_rows)
            return LaunchedStep(without(void, rows, chunks), self._fetch(num_rows), reports, errors=errors)

        return draw

    def _run_whole(self, chunks: list[Chunk]) -> Draw:
        drawing = dict(enumerate([chunk.sequence for chunk in chunks if chunk.draws]))
        self._edit_rows.assign(drawing.values())
        self._send_resets()
        graphs, graph = self._whole_graphs, None
        if graphs is not None and len(chunks) == 1 and is_known(chunks[0]):
            graph = graphs.graph_for_chunk(chunks[0])
        if graph is not None:
            graph.write_chunk(chunks[0], self._edit_rows.row_of, self._uploads.take())
            return self._launch_graph(graph, chunks, drawing)
        step = build_step(chunks, self._limits.block_tokens, self._batch_slots.previous_draw)
        step = replace(step, prefixes=self._prefix_grouping.groups_of(chunks))
        params = build_sampling_params(list(drawing.values()), self._edit_rows.row_of)
        prompts = prompt_tokens(chunks)
        reported = [prompt for prompt in prompts if prompt.token_ids]
        graph = None if graphs is None or reported else graphs.graph_for(step)
        if graph is not None:
            graph.write(step, params, self._uploads.take())
            return self._launch_graph(graph, chunks, drawing)
        logits, sent_params = self._launch_whole(step, params, reported)
        num_rows, enqueue_draw = len(drawing), None
        if drawing:
            enqueue_draw = partial(self._hosted_draw.enqueue, first(logits, num_rows), sent_params.first(num_rows))
        return self._whole_draw(chunks, drawing, num_rows, enqueue_draw, prompts if reported else ())

    def _launch_graph(self, graph: WholeStepGraph, chunks: list[Chunk], drawing: dict[int, Sequence]) -> Draw:
        """Send a step that was written, and launch it; what is left of it."""
        self._uploads.send(graph.sent)
        if all(sequence.draws_in_graph for sequence in drawing.values()):
            graph.launch()
            return self._whole_draw(chunks, drawing, graph.num_rows, None)
        graph.launch_forward()
        return self._whole_draw(chunks, drawing, graph.num_rows, graph.launch_draw)

    def _whole_draw(
        self,
        chunks: list[Chunk],
        drawing: dict[int, Sequence],
        num_rows: int,
        enqueue_draw: Callable[..., None] | None,
        prompts: Series[PromptTokens] = (),
    ) -> Draw:
        """What is left of a step that is not a decode step: ``enqueue_draw``, given whether it reports; its ids."""
        wishes, row_of = Drawing(drawing), {sequence: row for row, sequence in drawing.items()}
        self._batch_slots.interrupt(row_of)
        rows = np.array([row_of[sequence] if draws else -1 for sequence, _, draws in chunks], np.intp)

        def draw(void: Collection[Sequence]) -> LaunchedStep:
            errors: Mapping[int, OrcdError] = {}
            if enqueue_draw is not None:
                errors = self._send_masks(wishes, void)
                enqueue_draw(reports=wishes.reports)
            reports = self._fetch_reports(wishes, num_rows, sum(len(prompt.token_ids) for prompt in prompts))
            ids = self._fetch(len(drawing))
            return LaunchedStep(without(void, rows, chunks), ids, reports, prompts, errors)

        return draw

    def _launch_whole(
        self, step: Step[NDArray[Any]], params: SamplingParams[NDArray[Any]], reported: list[PromptTokens]
    ) -> tuple[AnyArray, SamplingParams[DeviceArray]]:
        """Send a step as it is, and launch it kernel by kernel; its logits, and how tokens are drawn from them.

        Behind the rows to draw from come those after which tokens of prompts are ``reported``.
        """
        sent, sent_params, prompt_ids = send_step(step, params, reported, self._uploads, self._whole)
        sent_params = replace(sent_params, edits=self._edits)
        self._ops.resolve_tokens(sent.token_ids, self._rows.drawn)
        logits = self._model.forward(sent, self._cache)
        if prompt_ids.size:
            self._logprob_reporter.report_prompts(logits, prompt_ids, sent_params)
        return logits, sent_params

    def _send_masks(self, drawing: Drawing, void: Collection[Sequence]) -> Mapping[int, OrcdError]:
        """The errors of rows that can draw nothing, but for those of which nobody needs anything."""
        needed = [each for each in drawing.constrained if each[1].finish_reason is None and each[1] not in void]
        return self._logit_masker.send([row for row, _ in needed], [sequence for _, sequence in needed])

    def _fetch_reports(self, drawing: Drawing, num_rows: int, num_prompt_rows: int = 0) -> Reports | None:
        """What the first ``num_rows`` rows report, and those of prompts behind them, if anybody asked for it."""
        if not num_prompt_rows and not drawing.reports:
            return None
        return Reports(self._logprob_reporter.fetch(num_rows + num_prompt_rows), num_rows, drawing.wanted)

    def _send_resets(self) -> None:
        for resets in self._edit_rows.take_resets():
            self._edit_sender.send(resets)

    def _forget_after(self, error: Exception) -> None:
        """The device may not have got what it was told: tell it everything anew. Raises what becomes a `CudaError`."""
        self._forget_rows()
        if isinstance(error, CudaFailure):
            raise CudaError(str(error)) from error
        if self._limits.has_states:
            raise CudaError(f"a step with states failed: {type(error).__name__} at {places(error)[-1]}") from error

    def _forget_rows(self) -> None:
        """Whatever the device holds of rows, it will be told anew."""
        size = self._limits
        self._logit_masker.forget()
        self._edit_rows = EditRows(size.max_sequences, size.vocab_size)
        self._batch_slots = SlotAllocator(size.max_sequences, size.max_blocks, size.block_tokens, self._edit_rows)

    def _fetch(self, num_ids: int) -> Download:
        return self._downloads.fetch(view(self._rows.drawn, 0, (num_ids * 4,), np.uint8))
