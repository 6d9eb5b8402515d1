"""What steps and their frames cost the engine's thread, with a device that needs no time.

    python -m tests.bench.host_steps [--streams 256,1024] [--rounds 12]

Streams decode in step with each other, as an engine's do between two starts of requests; then some of them end and
others begin every 8 steps, as where requests come all the time. The device is that of `tests.bench.structured_host`,
whose time does not count. All times are CPU time of one thread, for one step of all streams: the least of rounds. As in
`worker.service`, the outputs of several steps share a frame. Last comes what the host does for an idle engine's only
request up to its first token, of a prompt that is not cached and of one that is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import count

from numpy.random import default_rng

from tests.bench.part_times import PartTimes, told_apart
from tests.bench.request_mixes import SAMPLINGS
from tests.bench.structured_host import InstantModel
from worker.contract import Add, Outputs, Sampling, encode
from worker.engine.engine import Engine
from worker.settings import Settings

MIXES = ("greedy", "all of it")
VOCAB_SIZE = 151_936
PROMPT_TOKENS = 63
ROUND_STEPS = 16
"""In so many steps each sequence gets one block, wherever it began."""
FRAME_STEPS = 4
"""A frame is sent every 10 ms, and steps take some 2.5."""
TURNOVER_STEPS, TURNOVER_TOKENS = 8, 256
"""Steps from one start of requests to the next, and tokens of each request."""
PARTS = ("plan", "launch", "collect", "commit", "the rest", "frames")


def measure(mix: str, num_streams: int, num_rounds: int) -> dict[str, float]:
    """Milliseconds of a step by `PARTS`."""
    times = PartTimes()
    tokens = PROMPT_TOKENS + (num_rounds + 2) * ROUND_STEPS
    model = InstantModel(VOCAB_SIZE, times, context_length=tokens)
    settings = Settings(device="cuda:0", max_sequences=num_streams, kv_cache_bytes=num_streams * (tokens + 64) * 8)
    engine = Engine(model, settings)  # type: ignore[arg-type]
    times.watch(engine)
    for stream in range(num_streams):  # prompts of other lengths, so that blocks are full at other steps
        prompt = tuple(range(stream, stream + PROMPT_TOKENS - stream % 16))
        engine.add(Add(f"{stream:032x}", prompt, Sampling(max_tokens=tokens, seed=stream, **SAMPLINGS[mix])))  # type: ignore[arg-type]
    while engine.stats(memory_bytes=0).output_tokens < num_streams:
        engine.step()
    send = times.timed("frames", lambda: encode(Outputs(tuple(engine.outputs.take_all()))))
    rounds: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(num_rounds):
        times.clear()
        for step in range(ROUND_STEPS):
            engine.advance()
            if step % FRAME_STEPS == 0:
                send()
        apart = told_apart(times.own_s) | {"frames": times.own_s["frames"]}
        apart["launch"], apart["commit"] = apart["launch and upload"], apart["commit, with forced tokens"]
        for name in PARTS:
            rounds[name].append(1e3 * apart[name] / ROUND_STEPS)
    return {name: min(each) for name, each in rounds.items()}


def measure_turnover(num_streams: int, num_rounds: int) -> dict[str, float]:
    """The same where every `TURNOVER_STEPS` some streams end and as many begin; their requests are part of the rest."""
    times, numbers, generator = PartTimes(), count(), default_rng(0)
    model = InstantModel(VOCAB_SIZE, times, context_length=4 * TURNOVER_TOKENS)
    cache_bytes = num_streams * 4 * TURNOVER_TOKENS * 8
    engine = Engine(model, Settings(device="cuda:0", max_sequences=num_streams, kv_cache_bytes=cache_bytes))  # type: ignore[arg-type]
    times.watch(engine)

    def begin(num_requests: int, num_tokens: int) -> None:
        for _ in range(num_requests):
            number, prompt = next(numbers), generator.integers(0, VOCAB_SIZE, TURNOVER_TOKENS // 2).tolist()
            sampling = Sampling(max_tokens=num_tokens, seed=number, **SAMPLINGS["greedy"])  # type: ignore[arg-type]
            add = Add(f"{number:032x}", tuple(prompt), sampling)
            times.timed("add", engine.add)(add)

    def send() -> int:
        outputs = tuple(engine.outputs.take_all())
        encode(Outputs(outputs))
        return sum(output.finish_reason is not None for output in outputs)

    def run(num_steps: int) -> None:
        for step in range(num_steps):
            engine.advance()
            if step % FRAME_STEPS == 0:
                begin(times.timed("frames", send)(), TURNOVER_TOKENS)

    num_groups = TURNOVER_TOKENS // TURNOVER_STEPS
    for group in range(num_groups):
        num_requests = num_streams * (group + 1) // num_groups - num_streams * group // num_groups
        begin(num_requests, TURNOVER_TOKENS // 2 + group * TURNOVER_STEPS)
    run(2 * TURNOVER_TOKENS)
    rounds: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(num_rounds):
        times.clear()
        run(TURNOVER_TOKENS // 2)
        apart = told_apart(times.own_s) | {"frames": times.own_s["frames"]}
        apart["launch"], apart["commit"] = apart["launch and upload"], apart["commit, with forced tokens"]
        apart["the rest"] += times.own_s.get("add", 0.0)
        for name in PARTS:
            rounds[name].append(1e3 * apart[name] / (TURNOVER_TOKENS // 2))
    return {name: min(each) for name, each in rounds.items()}


def measure_first(num_tokens: int, *, is_cached: bool, num_rounds: int) -> float:
    """Milliseconds from an idle engine's only request of so many tokens to its first one."""
    model = InstantModel(VOCAB_SIZE, PartTimes(), context_length=2 * num_tokens)
    settings = Settings(device="cuda:0", max_sequences=256, kv_cache_bytes=16 * num_tokens * 8)
    engine, generator = Engine(model, settings), default_rng(0)  # type: ignore[arg-type]
    prompt, least = tuple(generator.integers(0, VOCAB_SIZE, num_tokens).tolist()), float("inf")
    for number in range(num_rounds + 2):
        if not is_cached:
            prompt = tuple(generator.integers(0, VOCAB_SIZE, num_tokens).tolist())
        add = Add(f"{number:032x}", prompt, Sampling(max_tokens=4, seed=number, **SAMPLINGS["greedy"]))  # type: ignore[arg-type]
        start = time.thread_time()
        engine.add(add)
        while not engine.step():
            pass
        least = min(least, 1e3 * (time.thread_time() - start))
        while engine.has_work:
            engine.step()
    return least


def main(argv: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.host_steps", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--streams", default="256,1024")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args(argv)
    print("| ms of a step of |", " | ".join([*PARTS, "all"]), "|")
    print("|---" * (len(PARTS) + 2) + "|")
    for num_streams in map(int, arguments.streams.split(",")):
        for mix in MIXES:
            parts = measure(mix, num_streams, arguments.rounds)
            figures = [f"{parts[name]:.2f}" for name in PARTS] + [f"{sum(parts.values()):.2f}"]
            print(f"| {num_streams}, {mix} |", " | ".join(figures), "|", flush=True)
        parts = measure_turnover(num_streams, arguments.rounds)
        figures = [f"{parts[name]:.2f}" for name in PARTS] + [f"{sum(parts.values()):.2f}"]
        print(f"| {num_streams}, some begin and end |", " | ".join(figures), "|", flush=True)
    for num_tokens in (512, 2048):
        cold, warm = (measure_first(num_tokens, is_cached=is_cached, num_rounds=30) for is_cached in (False, True))
        print(f"first token of {num_tokens}: {cold:.2f} ms, cached {warm:.2f} ms", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
