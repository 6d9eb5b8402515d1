"""``orcd plan``: what the requests of prompt files would cost on a model, counted without a worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import msgspec
from tqdm import tqdm

from orcd.batch.batch_inputs import BatchInputs, Entry
from orcd.batch.batch_options import BatchOptions
from orcd.batch.line import LineName
from orcd.batch.results.orcd_results import OrcdResults
from orcd.cli.terminal import write_json
from orcd.errors import InvalidRequest, ModelLoadFailed
from orcd.request import Request
from tasks.dispatch.prompt_encoder import PromptEncoder, TakesLong
from worker.model.gguf import open_gguf
from worker.settings import Settings

MAX_SHOWN = 20
"""Lines that would fail that people are shown; programs are told all."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model allows: tokens of prompt and answer together, and ids below its vocabulary size."""

    max_sequence_tokens: int
    vocab_size: int

    @classmethod
    def of(cls, settings: Settings) -> ModelLimits:
        """Of a GGUF file, or less where the settings say so; a worker with little memory may allow less still.

        Raises `ModelLoadFailed`.
        """
        metadata = open_gguf(settings.model).metadata
        length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        if not isinstance(length, int) or length < 1:
            raise ModelLoadFailed(f"{settings.model}: the file does not say its context_length")
        tokens = metadata.get("tokenizer.ggml.tokens", ())
        return cls(min(settings.context_length or length, length), len(tokens))


class BatchTotals(msgspec.Struct):
    """What a batch comes to. ``num_failed`` lines would go to the error file, the others are ``num_requests``.

    ``max_tokens_out`` is the most that the answers can have: ``max_tokens`` of each, or what the context leaves where a
    request has none; these are ``num_unlimited``. ``longest_prompt`` is in tokens, ``longest_line`` says where it is.
    """

    context_length: int
    num_lines: int = 0
    num_requests: int = 0
    num_failed: int = 0
    num_unlimited: int = 0
    tokens_in: int = 0
    max_tokens_out: int = 0
    longest_prompt: int = 0
    longest_line: str | None = None


class BatchPlan:
    """Counts the tokens of all requests of some inputs; `totals` grows while `failures` is gone through.

    Use as a context manager, which ends the encoder's processes. Raises `ModelLoadFailed`.
    """

    def __init__(self, settings: Settings, options: BatchOptions) -> None:
        self._encoder = PromptEncoder.load(settings)
        self._limits = ModelLimits.of(settings)
        self._options = options
        self.totals = BatchTotals(self._limits.max_sequence_tokens)

    def __enter__(self) -> BatchPlan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoder.close()

    def failures(self, names: Sequence[str]) -> Iterator[tuple[LineName, InvalidRequest]]:
        """The lines that would fail, as a worker would have it. Raises `InvalidRequest` for a file that cannot be read.

        A bar on standard error says how far it is, if that is a terminal.
        """
        with TemporaryDirectory(prefix="orcd-plan-") as folder:
            inputs = BatchInputs(names, Path(folder, "plan"), self._options)
            inputs.open()
            self.totals.num_lines = inputs.num_lines
            shown = tqdm(inputs.entries(), total=inputs.num_lines, unit="line", disable=not sys.stderr.isatty())
            for entry in shown:
                try:
                    self._count(inputs.parse(entry).request, entry, inputs)
                except InvalidRequest as error:
                    self.totals.num_failed += 1
                    yield LineName(entry.place, inputs.file_name(entry.place), inputs.caller_id(entry)), error

    def _count(self, request: Request, entry: Entry, inputs: BatchInputs) -> None:
        num_tokens = self._num_tokens(request)
        totals = self.totals
        totals.num_requests += 1
        totals.num_unlimited += request.max_tokens is None
        totals.tokens_in += num_tokens
        longest_answer = request.max_tokens or self._limits.max_sequence_tokens - num_tokens
        totals.max_tokens_out += request.n * longest_answer
        if num_tokens > totals.longest_prompt:
            totals.longest_prompt = num_tokens
            totals.longest_line = inputs.describe(entry.place)

    def _num_tokens(self, request: Request) -> int:
        try:
            return len(self._encoder.encode(request, self._limits).ids)
        except TakesLong as long:
            return len(self._encoder.encode_long(request, self._limits, long.lane).ids)


def show(plan: BatchPlan, names: Sequence[str], *, as_json: bool) -> int:
    """Print the lines that would fail and the sums; returns the exit code."""
    for number, (name, error) in enumerate(plan.failures(names)):
        if as_json:
            write_json(OrcdResults().failure(name, error))
        elif number < MAX_SHOWN:
            place = f"line {name.place.number}" + (f" of {name.file}" if name.file else "")
            named = "" if name.id is None else f" (id {name.id})"
            print(f"{place}{named}: {error.code}: {error.message}")
    totals = plan.totals
    if as_json:
        write_json(totals)
    else:
        if totals.num_failed > MAX_SHOWN:
            print(f"and {totals.num_failed - MAX_SHOWN:,} more, which --json lists")
        print(format_totals(totals))
    return 1 if totals.num_failed else 0


def format_totals(totals: BatchTotals) -> str:
    """The totals for people."""
    unlimited = f" ({totals.num_unlimited:,} requests without max_tokens)" if totals.num_unlimited else ""
    longest = f"; the longest {totals.longest_prompt:,} ({totals.longest_line})" if totals.longest_line else ""
    return "\n".join(
        (
            f"lines      {totals.num_lines:>14,}",
            f"requests   {totals.num_requests:>14,}",
            f"would fail {totals.num_failed:>14,}",
            f"prompts    {totals.tokens_in:>14,} tokens{longest}",
            f"answers    {totals.max_tokens_out:>14,} tokens at most{unlimited}",
            f"together   {totals.tokens_in + totals.max_tokens_out:>14,} tokens at most",
            f"context    {totals.context_length:>14,} tokens for a prompt with its answer",
        )
    )
