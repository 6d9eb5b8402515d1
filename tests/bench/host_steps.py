"""What decode steps and their frames cost the engine's thread, with a device that needs no time.

    python -m tests.bench.host_steps [--streams 256,1024] [--rounds 12]

Streams decode in step with each other, as an engine's do between two starts of requests; the device is that of
`tests.bench.structured_host`, whose time does not count. All times are CPU time of one thread, for one step of all
streams: the least of rounds of 16 steps. As in `worker.service`, the outputs of several steps share a frame.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
