"""What is done to logits on the device besides the draw: edits, masks, log probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series

import msgspec
import numpy as np

from kernels.batch import AnyArray, LogitEdits, Memory, SamplingParams, behind, first, pack, view
from kernels.devices.protocol import AnyOps, GpuDevice
from kernels.logit_edits import EditResetList, EditResets, reset_bytes
from kernels.ops.sampling import MAX_TOP
from kernels.runtime.device_array import DeviceArray
from orcd.errors import OrcdError
from orcd.sampling import MAX_LOGPROBS
from worker.engine.cuda.pinned_ring import Download, DownloadRing, UploadRing
from worker.engine.cuda.step_graph import HostedDraw
from worker.engine.logits.edit_rows import max_reset_entries
from worker.engine.logits.logprob_records import logprob_records
from worker.engine.logits.mask_slots import MaskSlots, num_mask_slots, number_rows
from worker.engine.logits.token_masks import masks_of, num_mask_words
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import TokenMask

assert MAX_LOGPROBS <= MAX_TOP, "a request may ask for more log probabilities than the kernel can report"


def edit_bytes(max_rows: int, vocab_size: int) -> int:
    """Bytes of what `EditRows` of ``max_rows`` has sent at a time."""
    return reset_bytes(max_rows, max_reset_entries(vocab_size))


class EditSender:
    """Tells the device what rows of edits begin with."""

    def __init__(
        self, device: GpuDevice, edits: LogitEdits[DeviceArray], memory: DeviceArray, timeout_s: float
    ) -> None:
        self._ops = device.ops
        self._edits = edits
        self._memory = memory
        self._uploads = UploadRing(device, memory.shape[0], timeout_s)

    def send(self, resets: EditResetList) -> None:
        """Enqueue that rows begin anew."""
        host = resets.arrays()
        arrays = {name: getattr(host, name) for name in host.__struct_fields__}
        num_bytes, offsets = pack(arrays, self._uploads.take())
        self._uploads.send(first(self._memory, num_bytes))
        views = {name: view(self._memory, offsets[name], array.shape, array.dtype) for name, array in arrays.items()}
        self._ops.reset_edits(self._edits, EditResets(**views))


class Drawing:
    """The sequences that a step draws for, by their rows of logits, and what they want besides an id."""

    def __init__(self, sequences: Mapping[int, Sequence]) -> None:
        self.constrained = [(row, each) for row, each in sequences.items() if each.constraint is not None]
        tops = [(row, sequence.sampling.logprobs) for row, sequence in sequences.items()]
        self.wanted = [(row, num_top) for row, num_top in tops if num_top is not None]

    @property
    def reports(self) -> bool:
        """Whether anybody wants log probabilities."""
        return bool(self.wanted)


def mask_bytes(max_rows: int, vocab_size: int) -> int:
    """Bytes of the numbers of ``max_rows``, and of a table of masks."""
    return 4 * (max_rows + num_mask_slots(max_rows) * num_mask_words(vocab_size))


class LogitMasker:
    """Leaves of logits what the constraints of their sequences allow.

    Masks stay on the device, in a table: a step sends the numbers of those that its rows have, and those that are new.
    """

    def __init__(self, device: GpuDevice, memory: DeviceArray, *, max_rows: int, vocab_size: int, timeout_s: float):
        self._ops = device.ops
        num_slots, self._num_words = num_mask_slots(max_rows), num_mask_words(vocab_size)
        self._numbers = view(memory, 0, (max_rows,), np.int32)
        self._masks = view(memory, 4 * max_rows, (num_slots, self._num_words), np.uint32)
        self._number_uploads = UploadRing(device, 4 * max_rows, timeout_s)
        self._mask_uploads = UploadRing(device, 4 * max_rows * self._num_words, timeout_s)
        self._slots = MaskSlots(num_slots, max_rows)
        self._is_clear = False

    def forget(self) -> None:
        """The device may not have what was sent."""
        self._slots.clear()
        self._is_clear = False

    def send(self, rows: Series[int], sequences: Series[Sequence]) -> dict[int, OrcdError]:
        """Enqueue that their masks are on the device; the errors of rows that can draw nothing.

        ``sequences`` are those with a constraint, each with its row of logits. They are asked here, while the device is
        still at work on what was enqueued before.
        """
        if not sequences and self._is_clear:
            return {}
        found = masks_of(sequences, self._num_words)
        self._place([mask for mask in found if isinstance(mask, TokenMask)])
        numbers, errors = number_rows(rows, found, self._slots.numbers, self._numbers.shape[0])
        staging = self._number_uploads.take()
        staging.view(np.int32)[:] = numbers
        self._number_uploads.send(view(self._numbers, 0, (numbers.nbytes,), np.uint8))
        self._is_clear = not sequences
        return errors

    def _place(self, masks: list[TokenMask]) -> None:
        """Enqueue that all of these are in the table."""
        start, missing = self._slots.place(masks)
        if not missing:
            return
        staging, size = self._mask_uploads.take(), 4 * self._num_words
        for index, mask in enumerate(missing):
            staging[index * size : (index + 1) * size] = np.frombuffer(mask.words, np.uint8)
        num_bytes = len(missing) * size
        self._mask_uploads.send(view(self._masks, start * size, (num_bytes,), np.uint8))

    def apply(self, logits: AnyArray) -> None:
        """Enqueue that ``logits`` [R, vocab] are masked where they are, as was sent last."""
        self._ops.mask_logits(logits, first(self._numbers, logits.shape[0]), self._masks, out=logits)


def report_bytes(num_rows: int) -> int:
    """Bytes of the log probabilities of ``num_rows``: of what was drawn, and of the likeliest ones with their ids."""
    return num_rows * 4 * (1 + 2 * MAX_LOGPROBS)


def report(
    ops: AnyOps, logits: AnyArray, ids: DeviceArray, params: SamplingParams[DeviceArray], reports: DeviceArray
) -> None:
    """Put what rows of ``logits`` [R, vocab] are to report into ``reports``; ``ids`` [R] were drawn with ``params``."""
    logprobs, top_ids, top_logprobs = _split(reports, ids.shape[0])
    ops.top_log_probabilities(
        logits, ids, params, out_logprobs=logprobs, out_top_ids=top_ids, out_top_logprobs=top_logprobs
    )


class Reports(msgspec.Struct, frozen=True, eq=False):
    """Log probabilities on their way to the host: of how many rows, and what each draw of the step asked for.

    Behind these rows are those of tokens of prompts.
    """

    download: Download
    num_rows: int
    wanted: Series[tuple[int, int | None]]  # row, and number of alternatives or None


class LogprobReporter:
    """Takes the log probabilities of drawn tokens and of the most probable ones to the host."""

    def __init__(self, device: GpuDevice, memory: DeviceArray) -> None:
        self._ops = device.ops
        self._reports = memory
        self._downloads = DownloadRing(device, memory.shape[0])

    def report(self, logits: AnyArray, ids: DeviceArray, params: SamplingParams[DeviceArray]) -> None:
        """Enqueue the reports of rows of ``logits`` [R, vocab], of which ``ids`` [R] were drawn with ``params``."""
        report(self._ops, logits, ids, params, self._reports)

    def report_prompts(self, logits: AnyArray, ids: DeviceArray, params: SamplingParams[DeviceArray]) -> None:
        """Enqueue the reports of the last R rows of ``logits`` [N, vocab], from which the ``ids`` [R] were not drawn.

        ``params`` are of all N. The reports are put behind those of the rows before.
        """
        num_before = logits.shape[0] - ids.shape[0]
        of_rows = SamplingParams(behind(params.rows, num_before), behind(params.output_positions, num_before))
        report(self._ops, behind(logits, num_before), ids, of_rows, behind(self._reports, report_bytes(num_before)))

    def fetch(self, num_rows: int) -> Download:
        """Enqueue that the host gets what ``num_rows`` reported last."""
        return self._downloads.fetch(view(self._reports, 0, (report_bytes(num_rows),), np.uint8))


def hosted_draw(device: GpuDevice, masker: LogitMasker, reporter: LogprobReporter, drawn: DeviceArray) -> HostedDraw:
    """Draws from masked logits [R, vocab] into the first R of ``drawn``, of which ``reporter`` then reports."""

    def draw(logits: AnyArray, params: SamplingParams[DeviceArray]) -> None:
        masker.apply(logits)
        device.ops.sample(logits, params, out_ids=first(drawn, logits.shape[0]))

    def report_drawn(logits: AnyArray, params: SamplingParams[DeviceArray]) -> None:
        reporter.report(logits, first(drawn, logits.shape[0]), params)

    return HostedDraw(draw, report_drawn)


def read_reports(
    reports: Download, num_rows: int, wanted: Series[tuple[int, int | None]], timeout_s: float, *, num_before: int = 0
) -> dict[int, bytes]:
    """The records of log probabilities by rows, where (row, number of alternatives) were asked for; waits for them.

    Of the ``num_rows`` that were reported together, behind ``num_before`` others. None are asked for of rows with None.
    """
    logprobs, top_ids, top_logprobs = _split(behind(reports.read(timeout_s), report_bytes(num_before)), num_rows)
    # NumPy would take long for each row of its own.
    numbers = {num_top for _, num_top in wanted if num_top is not None}
    records = {each: logprob_records(logprobs, top_ids[:, :each], top_logprobs[:, :each]) for each in numbers}
    return {row: records[num_top][row] for row, num_top in wanted if num_top is not None}


def _split(reports: Memory, num_rows: int) -> tuple[Memory, Memory, Memory]:
    """Log probabilities [R] float32, the likeliest ids [R, MAX_LOGPROBS] int32 and theirs, in one buffer of bytes."""
    table = (num_rows, MAX_LOGPROBS)
    return (
        view(reports, 0, (num_rows,), np.float32),
        view(reports, num_rows * 4, table, np.int32),
        view(reports, num_rows * 4 * (1 + MAX_LOGPROBS), table, np.float32),
    )
