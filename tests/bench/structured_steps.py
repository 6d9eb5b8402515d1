"""What steps with constraints cost the host: CPU time of masks, of tokens taken and of forced ones, without a model.

    python -m tests.bench.structured_steps [--model MODEL.gguf] [--streams 256] [--steps 60] [--max-tokens 256]
        [--threads N]

Only the vocabulary of the model is used; by default it is made up, with as many tokens as Qwen's. All streams have the
schema of `tests.bench.structured_rates`, and draw random tokens among those that their masks allow. When an answer is
whole another one begins.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from orcd.errors import OrcdError
from tests.bench.make_model import MODELS
from tests.bench.structured_rates import SCHEMA
from worker.contract import Sampling
from worker.engine.cohort import Draw, DrawnTokens
from worker.engine.logits.constrained_draws import take_draws
from worker.engine.logits.forced_tokens import append_forced
from worker.engine.logits.token_masks import masks_of, num_mask_words
from worker.engine.sequence import Chunk, Sequence
from worker.engine.token_constraint import TokenMask
from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.matcher_batch import num_threads
from worker.text.grammar.token_matcher import TokenMatcher
from worker.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Timer:
    """Seconds spent in it: CPU time of all threads, CPU time of this one, and by the clock."""

    cpu_s: float = 0.0
    own_s: float = 0.0
    wall_s: float = 0.0

    def __enter__(self) -> None:
        self._add(-1)

    def __exit__(self, *_: object) -> None:
        self._add(1)

    def _add(self, sign: int) -> None:
        self.cpu_s += sign * time.process_time()
        self.own_s += sign * time.thread_time()
        self.wall_s += sign * time.perf_counter()

    def text(self, num_tokens: int) -> str:
        """Microseconds of a token."""
        cpu, own, wall = (1e6 * each / num_tokens for each in (self.cpu_s, self.own_s, self.wall_s))
        return f"{cpu:.1f} us ({own:.1f} on the engine's thread, {wall:.1f} by the clock)"


@dataclass(slots=True)
class Cost:
    """What steps took, and how many tokens that was for."""

    masks: Timer = field(default_factory=Timer)
    taken: Timer = field(default_factory=Timer)
    forced: Timer = field(default_factory=Timer)
    num_tokens: int = 0
    num_forced: int = 0
    num_answers: int = 0

    def lines(self) -> list[str]:
        """What a person reads."""
        return [
            f"{self.num_tokens} tokens, {100 * self.num_forced / self.num_tokens:.1f} % not drawn, "
            f"{self.num_answers} answers; of a token:",
            *(f"{name} {getattr(self, name).text(self.num_tokens)}" for name in ("masks", "taken", "forced")),
        ]


@cache
def synthetic_tokenizer() -> Tokenizer:
    """Of the model that `tests.bench.make_model` makes in Qwen's shape."""
    spec = MODELS["qwen2.5-0.5b"][1](1)
    vocabulary = spec.vocabulary
    fields = {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": vocabulary.tokens,
        "token_type": [int(kind) for kind in vocabulary.types],
        "merges": vocabulary.merges,
        "bos_token_id": spec.token_ids["bos"],
        "eos_token_id": spec.token_ids["eos"],
    }
    return tokenizers.from_metadata({f"tokenizer.ggml.{name}": value for name, value in fields.items()})


def tokenizer_of(model: Path | None) -> Tokenizer:
    """That of a model, or the synthetic one."""
    return tokenizers.from_metadata(open_gguf(model).metadata) if model else synthetic_tokenizer()


def measure(tokenizer: Tokenizer, num_streams: int, num_steps: int, max_tokens: int, num_threads: int = 1) -> Cost:
    """Take ``num_steps`` of all streams together, as an engine does."""
    compiler = GrammarCompiler(tokenizer, num_threads=num_threads)
    beginning = compiler.compile(grammar_text("json_schema", SCHEMA))
    chance, cost = random.Random(0), Cost()
    streams = [_stream(beginning, number, max_tokens) for number in range(num_streams)]
    num_words = num_mask_words(tokenizer.vocab_size)
    for _ in range(num_steps):
        with cost.masks:
            masks = masks_of(streams, num_words)
        chunks = [Chunk(stream, 1, True) for stream in streams]
        drawn = DrawnTokens([_draw(mask, chance) for mask in masks], [])
        with cost.taken:
            results = take_draws(chunks, drawn).results
            for stream, result in zip(
                streams, results.ids if isinstance(results, DrawnTokens) else results, strict=True
            ):
                token_id = result.token_id if isinstance(result, Draw) else result
                assert isinstance(token_id, int), result
                stream.launch(stream.num_pending, draws=True)
                stream.append(token_id)
        with cost.forced:
            cost.num_forced += sum(len(append_forced(stream)[0]) for stream in streams)
        for number, stream in enumerate(streams):
            if stream.finish_reason is not None:
                cost.num_answers += 1
                streams[number] = _stream(beginning, number, max_tokens)
    cost.num_tokens = num_steps * num_streams + cost.num_forced
    return cost


def main(argv: Series[str]) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.structured_steps", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=num_threads())
    arguments = parser.parse_args(argv)
    tokenizer = tokenizer_of(arguments.model)
    cost = measure(tokenizer, arguments.streams, arguments.steps, arguments.max_tokens, arguments.threads)
    print("\n".join(cost.lines()))
    return 0


def _stream(beginning: TokenMatcher, number: int, max_tokens: int) -> Sequence:
    sampling = Sampling(max_tokens=max_tokens, temperature=1.0)
    return Sequence(f"r{number}", 0, sampling, 0, [0], 1, max_tokens, constraint=beginning.copy())


def _draw(allowed: TokenMask | int | OrcdError, chance: random.Random) -> int:
    """One of the ids that may be drawn."""
    if isinstance(allowed, int):
        return allowed
    assert isinstance(allowed, TokenMask), allowed
    mask = np.frombuffer(allowed.words, np.uint32)
    word = int(chance.choice(np.flatnonzero(mask)))
    return chance.choice([32 * word + bit for bit in range(32) if int(mask[word]) >> bit & 1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
