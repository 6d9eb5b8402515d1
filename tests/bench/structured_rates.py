"""How fast one engine is with answers that must fit a schema, beside answers that are free.

    python -m tests.bench.structured_rates MODEL.gguf [--device cuda:0] [--streams 256] [--output-tokens 256]
        [--vocabulary OTHER.gguf] [--repeats N] [--parts]

The vocabulary may be that of another file of as many tokens, as a model's that is made up. With each repetition the
schema is compiled anew, so that nothing is known of its documents. With ``--parts`` there is below each rate what the
engine's thread did for one token of each stream, by the clock, of which reading the clock is a part.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

from numpy.random import default_rng

from kernels.devices.protocol import is_gpu
from tests.bench.part_times import PartTimes, told_apart
from worker.contract import Abort, Add, Sampling
from worker.engine.engine import Engine
from worker.load import load_engine, open_configured_device
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config
from worker.settings import from_environment
from worker.text import tokenizer as tokenizers
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.matcher_batch import num_threads
from worker.text.grammar.token_matcher import TokenMatcher

SHARES = (0.0, 0.05, 1.0)
"""Of the streams, how many have the schema; the first line is what the others are compared with."""
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 256
WARM_UP_TOKENS = 24
"""Of each stream, before the time starts: sizes of steps are captured the second time that they come."""
_ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "order_number": {"type": "integer", "minimum": 0, "maximum": 999999},
        "customer": {"type": "string", "maxLength": 40},
        "status": {"enum": ["open", "paid", "shipped", "cancelled"]},
        "price": {"type": "number"},
        "comment": {"anyOf": [{"type": "string", "maxLength": 80}, {"type": "null"}]},
    },
    "required": ["order_number", "customer", "status", "price", "comment"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _ORDER, "minItems": 2, "maxItems": 6}
"""Two to six orders of five fields each: numbers, an enum, strings of bounded length, one that may be null."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Output tokens per second of all streams, and the part of constrained streams' tokens that were not drawn."""

    num_constrained: int
    tokens_per_s: float
    forced_share: float
    num_steps: int = 0
    parts_ms: dict[str, float] = field(default_factory=dict)
    """Of the engine's thread, for a token of each stream."""


class ConstrainedStreams:
    """Streams on one engine, of which each asks again when its answer ends; end tokens do not end the free ones.

    A stream has the same prompt each time, which is in the prefix cache: what is measured is decoding.
    """

    def __init__(
        self,
        engine: Engine,
        matcher: TokenMatcher,
        vocab_size: int,
        num_streams: int,
        times: PartTimes | None = None,
    ) -> None:
        """``times`` watches the engine, if anybody does."""
        self._engine = engine
        self._times = times or PartTimes()
        self._matcher = matcher
        prompts = default_rng(0).integers(0, vocab_size, (num_streams, PROMPT_TOKENS)).tolist()
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._numbers = count()

    def rates(self, output_tokens: int = OUTPUT_TOKENS) -> Iterator[Rate]:
        """One for each of `SHARES`, over ``output_tokens`` of each stream on average."""
        for share in SHARES:
            yield self.rate(ceil(share * len(self._prompts)), output_tokens)

    def rate(self, num_constrained: int, output_tokens: int) -> Rate:
        """That with so many constrained streams."""
        streams = {self._ask(stream, num_constrained): stream for stream in range(len(self._prompts))}
        self._run(streams, num_constrained, min(WARM_UP_TOKENS, output_tokens) * len(streams))
        before, start = self._engine.stats(memory_bytes=0), time.perf_counter()
        self._times.clear()
        num_tokens, num_free = self._run(streams, num_constrained, output_tokens * len(streams))
        total_s = time.perf_counter() - start
        after, parts_s = self._engine.stats(memory_bytes=0), told_apart(self._times.wall_s)
        for name in streams:
            self._engine.abort(Abort(name))
        while self._engine.has_work:
            self._engine.step()
        return Rate(
            num_constrained,
            num_tokens / total_s,
            (after.forced_tokens - before.forced_tokens) / max(1, num_tokens - num_free),
            after.steps - before.steps,
            {
                name: 1e3 * seconds * len(streams) / num_tokens
                for name, seconds in parts_s.items()
                if any(parts_s.values())
            },
        )

    def _run(self, streams: dict[str, int], num_constrained: int, num_wanted: int) -> tuple[int, int]:
        """Step until there are so many tokens; returns how many there are, and how many of them in free answers."""
        num_tokens = num_free = 0
        while num_tokens < num_wanted:
            for output in self._engine.step():
                assert output.finish_reason != "error", output
                num_tokens += len(output.ids)
                num_free += len(output.ids) * (streams[output.request_id] >= num_constrained)
                if output.finish_reason is not None:
                    stream = streams.pop(output.request_id)
                    streams[self._ask(stream, num_constrained)] = stream
        return num_tokens, num_free

    def _ask(self, stream: int, num_constrained: int) -> str:
        number = next(self._numbers)
        add = Add(f"r{number}", self._prompts[stream], Sampling(max_tokens=OUTPUT_TOKENS, temperature=1.0, seed=number))
        self._engine.add(add, self._matcher if stream < num_constrained else None)
        return add.request_id


def measure_rates(
    model: Path,
    device: str,
    num_streams: int,
    output_tokens: int = OUTPUT_TOKENS,
    vocabulary: Path | None = None,
    *,
    repeats: int = 1,
    parts: bool = False,
) -> Iterator[list[Rate]]:
    """All rates, ``repeats`` times on one engine in this process; with ``parts`` where their time went."""
    settings = replace(
        from_environment({}),
        model=str(model),
        device=device,
        max_sequences=num_streams,
        context_length=PROMPT_TOKENS + OUTPUT_TOKENS,
    )
    gguf = open_gguf(settings.model)
    vocab_size = read_model_config(gguf).vocab_size
    tokenizer = tokenizers.from_metadata((open_gguf(vocabulary) if vocabulary else gguf).metadata)
    compiler = GrammarCompiler(tokenizer, vocab_size, num_threads=num_threads())
    device_of_engine = open_configured_device(settings)
    engine = load_engine(gguf, device_of_engine, settings, lambda _done, _total: None)
    times = PartTimes()
    for number in range(repeats):
        matcher = compiler.compile(grammar_text("json_schema", SCHEMA))
        if parts and not number:
            times.watch(engine, matcher)
            if is_gpu(device_of_engine):
                for event in engine._runner._downloads._copied:  # type: ignore[attr-defined]
                    times.watch_wait(event)
        yield list(ConstrainedStreams(engine, matcher, vocab_size, num_streams, times).rates(output_tokens))


def rate_lines(rates: list[Rate], num_streams: int) -> list[str]:
    """A line for each rate, and one for its parts, if they are known."""
    free, lines = rates[0].tokens_per_s, []
    for rate in rates:
        lines.append(
            f"{num_streams} streams, {rate.num_constrained:4} constrained: {rate.tokens_per_s:10,.0f} tok/s, "
            f"{100 * rate.tokens_per_s / free:5.1f} % of free ones; "
            f"{100 * rate.forced_share:.1f} % of the constrained tokens not drawn"
        )
        if rate.parts_ms:
            parts = ", ".join(f"{name} {each:.2f}" for name, each in rate.parts_ms.items())
            lines.append(f"    {rate.num_steps} steps; ms for a token of each: {parts}")
    return lines


def main(argv: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.structured_rates", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=OUTPUT_TOKENS)
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--parts", action="store_true")
    arguments = parser.parse_args(argv)
    for rates in measure_rates(
        arguments.model,
        arguments.device,
        arguments.streams,
        arguments.output_tokens,
        arguments.vocabulary,
        repeats=arguments.repeats,
        parts=arguments.parts,
    ):
        print("\n".join(rate_lines(rates, arguments.streams)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
