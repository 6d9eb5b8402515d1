"""One engine for a while: the same ids twice, memory as planned and never more, no block lost.

    python -m tests.bench.endurance MODEL.gguf [--device cuda:0] [--streams 64] [--output-tokens 512] [--requests 1000]

Runs ``--streams`` requests at once, greedy and sampled in turn, and the same again; then ``--requests`` short ones of
every kind (lengths, sampling, penalties, choices, log probabilities, aborts), with the engine's invariants checked
after every step. Prints what the memory plan says and what is used, and exits with 1 if a check failed. On the CPU
device, which plans nothing, memory is only printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from numpy.random import Generator, default_rng

from kernels.devices.protocol import Device
from orcd.errors import OrcdError
from worker.contract import Abort, Add, Choice, Sampling, TokenOutput
from worker.load import load_engine, open_configured_device
from worker.memory_plan import plan_memory
from worker.model.gguf import GGUFFile, open_gguf
from worker.model.registry import read_model_config
from worker.settings import Settings, from_environment

PROMPT_TOKENS = 64
MOST_CONTEXT = 4096
"""So that the KV cache has no more blocks than can be checked in a few milliseconds."""
ARRIVALS = 8
"""Fewer than so many random requests come in a step."""
WARM_UP_SHARE = 10
"""After a tenth of the random requests every kind of step has run: from there on memory may not grow at all."""
PLAN_TOLERANCE = 0.02

Ids = dict[tuple[str, int], list[int]]


class Endurance:
    """One engine under test; ``problems`` has a line for each check that failed."""

    def __init__(self, gguf: GGUFFile, device: Device, settings: Settings) -> None:
        self.problems: list[str] = []
        self._device = device
        self._is_planned = device.budget_bytes is not None
        self._vocab_size = read_model_config(gguf).vocab_size
        self._plan_bytes = plan_memory(gguf, device, settings).memory.total_bytes if self._is_planned else 0
        self._engine = load_engine(gguf, device, settings, lambda _done, _total: None)

    def repeat(self, num_streams: int, num_tokens: int) -> str:
        """The same long requests twice; a line about them."""
        generator = default_rng(1)
        adds = []
        for number in range(num_streams):
            sampled = {"temperature": 0.8, "top_p": 0.95, "seed": number} if number % 2 else {"temperature": 0.0}
            adds.append(Add(f"r{number}", self._prompt(generator, PROMPT_TOKENS), Sampling(num_tokens, **sampled)))
        start = time.perf_counter()
        once, again = self._generate(adds), self._generate(adds)
        took_s = time.perf_counter() - start
        different = [name for (name, _), ids in once.items() if again[name, 0] != ids or len(ids) != num_tokens]
        self._check(not different, f"not {num_tokens} tokens, or other ids in the second run: {', '.join(different)}")
        rate = 2 * num_streams * num_tokens / took_s
        return (
            f"{num_streams} streams of {num_tokens} tokens, twice: {num_streams - len(different)} with the same ids, "
            f"{took_s:.1f} s, {rate:,.0f} tok/s"
        )

    def random(self, num_requests: int) -> str:
        """Short requests of every kind; a line about them."""
        generator = default_rng(2)
        expected: set[tuple[str, int]] = set()
        ends: Counter[tuple[str, int]] = Counter()
        start, num_added, num_steps, warm_bytes = time.perf_counter(), 0, 0, 0
        while num_added < num_requests or self._engine.has_work:
            for number in range(num_added, min(num_requests, num_added + int(generator.integers(ARRIVALS)))):
                add = self._random_request(generator, f"x{number}")
                expected.update((add.request_id, choice.index) for choice in add.choices)
                self._engine.add(add)
                num_added += 1
            if num_added and generator.random() < 0.2:
                self._engine.abort(Abort(f"x{generator.integers(num_added)}"))
            for output in self._step():
                ends[output.request_id, output.choice] += output.finish_reason is not None
            self._engine.check_invariants()
            num_steps += 1
            if not warm_bytes or num_added <= num_requests // WARM_UP_SHARE:
                warm_bytes = self._device.memory_bytes()
        self._check(ends.keys() == expected and set(ends.values()) <= {1}, "not every request ended exactly once")
        stats = self._engine.stats(memory_bytes=self._device.memory_bytes())
        self._check(not stats.kv_blocks_used, f"{stats.kv_blocks_used} blocks leaked")
        grown = stats.memory_bytes - warm_bytes
        self._check(not self._is_planned or grown <= 0, f"device memory grew by {grown} bytes")
        return (
            f"{num_requests} random requests, {num_steps} steps, {time.perf_counter() - start:.1f} s: invariants held, "
            f"{stats.kv_blocks_used} blocks leaked, {stats.preemptions} preemptions, memory grew by {grown:,} bytes"
        )

    def memory(self) -> str:
        """Plan and use, and where the buffers lie; a line about them."""
        found = self._device.verify_residency()
        self._check(not found, "not plain device memory: " + "; ".join(found))
        used = self._device.memory_bytes()
        if not self._is_planned:
            return f"memory: {used:,} bytes in use, no plan on {self._device.name}"
        difference = used / self._plan_bytes - 1
        self._check(abs(difference) <= PLAN_TOLERANCE, f"memory in use is {difference:+.1%} off the plan")
        return (
            f"memory: {self._plan_bytes:,} bytes planned, {used:,} in use ({difference:+.2%}); "
            f"{'all of it' if not found else 'not all of it'} plain device memory"
        )

    def _check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    def _prompt(self, generator: Generator, num_tokens: int) -> tuple[int, ...]:
        return tuple(generator.integers(0, self._vocab_size, num_tokens).tolist())

    def _random_request(self, generator: Generator, name: str) -> Add:
        sampling = Sampling(
            max_tokens=int(generator.integers(1, 24)),
            temperature=float(generator.choice([0.0, 0.7, 1.3])),
            top_p=float(generator.choice([1.0, 0.9])),
            top_k=int(generator.choice([0, 20])),
            min_p=float(generator.choice([0.0, 0.05])),
            repetition_penalty=float(generator.choice([1.0, 1.0, 1.2])),
            frequency_penalty=float(generator.choice([0.0, 0.0, 0.5])),
            seed=int(generator.integers(2**32)),
            stop_token_ids=self._prompt(generator, 4),
            logprobs=[None, None, None, 2][int(generator.integers(4))],
        )
        choices = tuple(Choice(index) for index in range(int(generator.choice([1, 1, 1, 2]))))
        prompt = self._prompt(generator, int(generator.integers(1, 48)))
        return Add(name, prompt, sampling, choices, priority=int(generator.integers(10)))

    def _generate(self, adds: Sequence[Add]) -> Ids:
        for add in adds:
            self._engine.add(add)
        ids: Ids = {(add.request_id, choice.index): [] for add in adds for choice in add.choices}
        while self._engine.has_work:
            for output in self._step():
                ids[output.request_id, output.choice] += output.ids
        return ids

    def _step(self) -> list[TokenOutput]:
        outputs = self._engine.step()
        for output in outputs:
            if output.finish_reason == "error":
                self.problems.append(f"{output.request_id}: {output.error_code}: {output.error_message}")
        return outputs


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What is run; exits with 2 for wrong usage."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.endurance", description=description)
    parser.add_argument("model")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=512)
    parser.add_argument("--requests", type=int, default=1000)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = read_arguments(argv)
    settings = from_environment(model=arguments.model, device=arguments.device, max_sequences=arguments.streams)
    try:
        gguf = open_gguf(settings.model)
        settings = replace(settings, context_length=min(read_model_config(gguf).context_length, MOST_CONTEXT))
        start = time.perf_counter()
        endurance = Endurance(gguf, open_configured_device(settings), settings)
    except OrcdError as error:
        print(f"orcd: {error.code}: {error.message}", file=sys.stderr)
        return 1
    print(
        f"{Path(settings.model).name} on {settings.device}: loaded in {time.perf_counter() - start:.1f} s", flush=True
    )
    print(endurance.repeat(arguments.streams, arguments.output_tokens), flush=True)
    print(endurance.random(arguments.requests), flush=True)
    print(endurance.memory())
    for problem in endurance.problems:
        print(problem)
    return 1 if endurance.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
