"""What steps cost the host with a device that needs no time: how long a step must last at least, however fast a GPU is.

    python -m tests.bench.structured_host [--model MODEL.gguf] [--streams 256] [--constrained 256] [--output-tokens 60]
        [--threads N]

An engine decodes for streams as in `tests.bench.structured_rates`, with the vocabulary of the model, or one that is
made up in Qwen's shape. Its device is made of arrays, and draws any tokens that the masks allow; that time does not
count. All times are CPU time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.random import default_rng

from kernels.batch import ANY_ID, decode_only_id
from tests.bench.part_times import SHARED, PartTimes, told_apart
from tests.bench.structured_rates import OUTPUT_TOKENS, PROMPT_TOKENS, SCHEMA, WARM_UP_TOKENS, ConstrainedStreams
from tests.bench.structured_steps import tokenizer_of
from tests.worker.engine.cuda.late_device import LateDevice, LateEvent
from worker.engine.engine import Engine
from worker.settings import Settings
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.matcher_batch import num_threads
from worker.text.tokenizer import Tokenizer

OTHER_OPS = ("begin_decode", "resolve_tokens", "top_log_probabilities")


class InstantDevice(LateDevice):
    """Draws any id that the mask of a row allows; the other ops do nothing."""

    def __init__(self, host_time: PartTimes) -> None:
        super().__init__()
        self._chance = default_rng(0)
        self._masks: dict[int, int] = {}  # their numbers, by rows of logits
        self._table = np.empty((0, 0), np.uint32)
        self._host_time = host_time
        for name in OTHER_OPS:
            setattr(self.ops, name, self._later(lambda *_, **__: None))
        self.ops.mask_logits = self._later(self._keep_masks)
        self.ops.sample = self._later(self._draw)

    def event(self) -> LateEvent:
        event = super().event()
        self._host_time.watch_wait(event)
        return event

    def _garbage(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def _keep_masks(self, _logits: Any, numbers: np.ndarray, masks: np.ndarray, *, out: np.ndarray) -> None:
        assert numbers.shape == out.shape[:1]
        self._masks = {row: int(numbers[row]) for row in np.flatnonzero(numbers != ANY_ID).tolist()}
        self._table = masks

    def _draw(self, _logits: Any, _params: Any, *, out_ids: np.ndarray, host_ids: np.ndarray | None = None) -> None:
        out_ids[:] = 0
        numbers, self._masks = self._masks, {}
        for row, number in numbers.items():
            if number < 0:
                out_ids[row] = decode_only_id(number)
                continue
            mask = self._table[number]
            word = int(self._chance.choice(np.flatnonzero(mask)))
            bits = [bit for bit in range(32) if int(mask[word]) >> bit & 1]
            out_ids[row] = 32 * word + int(self._chance.choice(bits))
        if host_ids is not None:
            host_ids[:] = out_ids


class InstantModel:
    """Has no weights and no cache."""

    recompute_at, one_kernel_contexts, bytes_per_state = None, MappingProxyType[int, int]({}), 0
    draws_in_one_kernel = False

    def __init__(
        self, vocab_size: int, host_time: PartTimes, context_length: int = PROMPT_TOKENS + OUTPUT_TOKENS
    ) -> None:
        self.config = SimpleNamespace(
            vocab_size=vocab_size, context_length=context_length, num_layers=1, num_kv_heads=1, head_dim=16
        )
        self.device = InstantDevice(host_time)

    def bytes_per_block(self, block_tokens: int) -> int:
        return 8 * block_tokens

    def allocate_cache(self, *_: Any) -> np.ndarray:
        return np.zeros(1)

    def forward(self, step: Any, _cache: Any) -> np.ndarray:
        return np.broadcast_to(np.float32(0), (step.logit_rows.shape[0], self.config.vocab_size))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Milliseconds for as many tokens as there are streams, which is a token of each."""

    num_tokens: int
    own_ms: dict[str, float]
    shared_ms: dict[str, float]

    def step_ms(self, threads: int) -> float:
        """If so many threads share alike."""
        return sum(self.own_ms.values()) + sum(self.shared_ms.values()) / threads

    def lines(self) -> list[str]:
        """What a person reads."""
        parts = [f"{name} {self.own_ms[name]:.2f} ms" for name in self.own_ms]
        shared = [f"{name} {each:.2f} ms" for name, each in self.shared_ms.items()]
        steps = [f"{self.step_ms(threads):.2f} ms with {threads}" for threads in (1, 2, 4, 12)]
        return [
            f"{self.num_tokens} tokens; for one of each stream, on the engine's thread: " + ", ".join(parts),
            "on threads that share: " + ", ".join(shared),
            "a step, computed from these: " + ", ".join(steps) + " such threads",
        ]


def measure(
    tokenizer: Tokenizer, num_streams: int, num_constrained: int, output_tokens: int, threads: int = 1
) -> Outcome:
    """Decode ``output_tokens`` of each stream on average."""
    spent = PartTimes()
    cache_bytes = num_streams * (PROMPT_TOKENS + OUTPUT_TOKENS + 64) * 8
    settings = Settings(device="cuda:0", max_sequences=num_streams, kv_cache_bytes=cache_bytes)
    engine = Engine(InstantModel(tokenizer.vocab_size, spent), settings)  # type: ignore[arg-type]
    matcher = GrammarCompiler(tokenizer, num_threads=threads).compile(grammar_text("json_schema", SCHEMA))
    spent.watch(engine, matcher)
    streams = ConstrainedStreams(engine, matcher, tokenizer.vocab_size, num_streams)
    streams.rate(num_constrained, WARM_UP_TOKENS)
    num_before = engine.stats(memory_bytes=0).output_tokens
    spent.clear()
    streams.rate(num_constrained, output_tokens)
    num_tokens = engine.stats(memory_bytes=0).output_tokens - num_before
    to_ms = 1e3 * num_streams / num_tokens
    own_ms = {part: to_ms * seconds for part, seconds in told_apart(spent.own_s).items()}
    del own_ms["waiting for the device"]  # where the device's work is done
    shared_ms = {part: to_ms * spent.shared_s(part) for part in SHARED}
    return Outcome(num_tokens, own_ms, shared_ms)


def main(argv: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.structured_host", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--constrained", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=60)
    parser.add_argument("--threads", type=int, default=num_threads())
    arguments = parser.parse_args(argv)
    outcome = measure(
        tokenizer_of(arguments.model),
        arguments.streams,
        arguments.constrained,
        arguments.output_tokens,
        arguments.threads,
    )
    print("\n".join(outcome.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
