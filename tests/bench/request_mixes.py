"""What users send, on one engine.

    python -m tests.bench.request_mixes MODEL.gguf [--device cuda:0] [--streams 256] [--repeats 3] [--cases NAME,...]
        [--json]

One line a case: output tokens per second of many streams and of one, with several samplings; of prompts of mixed
lengths, and of prompts whose beginning is in the prefix cache, one for all or one for each; milliseconds to the first
token of an idle engine's only request, of a cold and of a cached prompt; and the prefill of many prompts at once.
Medians; prompts are random ids, and end tokens end nothing. Other settings of the engine are read from the
environment, as a worker reads them: ORCD_KV_CACHE_TYPE=q8 measures keys and values of 8 bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from numpy.random import default_rng

from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.load import load_engine, open_configured_device
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config
from worker.settings import from_environment

MOST_CONTEXT = 4096
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 256
SAMPLINGS: dict[str, dict[str, float | int]] = {
    "greedy": {"temperature": 0},
    "temperature 0.8": {"temperature": 0.8},
    "+ top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "+ top-p, top-k 50": {"temperature": 0.8, "top_p": 0.95, "top_k": 50},
    "penalty 1.1": {"temperature": 0, "repetition_penalty": 1.1},
    "logprobs 5": {"temperature": 0, "logprobs": 5},
    "all of it": {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1, "logprobs": 5},
}
FIRST_TOKEN_LENGTHS = (32, 512, 2048)
PREFILL_LENGTHS = (128, 512, 2048)
PREFILL_STREAMS = 64
MIXED_LENGTHS = (32, 3000)
PREFIX_TOKENS, QUESTION_TOKENS = 2000, 16


class Bench:
    """Runs requests on an engine; every run has prompts that were not there before."""

    def __init__(self, engine: Engine, vocab_size: int, repeats: int, streams: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._repeats = repeats
        self._streams = streams
        self._generator = default_rng(0)
        self._numbers = count()

    def cases(self) -> Iterator[tuple[str, Callable[[], float], str]]:
        """Each case: its name, what measures it, and the unit of that."""
        for streams in (self._streams, 1):
            for name in SAMPLINGS:
                yield f"{streams} x {name}", partial(self._sampled, streams, name), "tok/s"
        yield "mixed", self._mixed, "tok/s"
        for is_shared, whose in ((True, "one prefix"), (False, "a prefix each")):
            yield f"{self._streams} on {whose} of {PREFIX_TOKENS}", partial(self._prefixed, is_shared), "tok/s"
        for length in FIRST_TOKEN_LENGTHS:
            yield f"first {length}", partial(self._first_token, length), "ms"
        for length in FIRST_TOKEN_LENGTHS[1:]:
            yield f"warm {length}", partial(self._warm_prefix, length), "ms"
        for length in PREFILL_LENGTHS:
            yield f"prefill {PREFILL_STREAMS} x {length}", partial(self._prefill, length), "tok/s"

    def _sampled(self, streams: int, name: str) -> float:
        rates = []
        for repeat in range(self._repeats + 1):
            output = OUTPUT_TOKENS if repeat else 8  # the first run warms up
            total_s, _ = self._run([self._prompt(PROMPT_TOKENS) for _ in range(streams)], output, **SAMPLINGS[name])
            rates.append(streams * output / total_s)
        return median(rates[1:])

    def _mixed(self) -> float:
        rates = []
        for _ in range(self._repeats):
            lengths = self._generator.integers(*MIXED_LENGTHS, self._streams, endpoint=True).tolist()
            total_s, _ = self._run([self._prompt(length) for length in lengths], OUTPUT_TOKENS)
            rates.append(self._streams * OUTPUT_TOKENS / total_s)
        return median(rates)

    def _prefixed(self, is_shared: bool) -> float:
        """Where the cache holds fewer prefixes than there are streams, those that are missing are computed again."""
        rates = []
        for _ in range(self._repeats):
            prefixes = [self._prompt(PREFIX_TOKENS) for _ in range(1 if is_shared else self._streams)]
            self._run(prefixes, 1)
            prompts = [
                (*prefix, *self._prompt(QUESTION_TOKENS)) for prefix in prefixes * (self._streams // len(prefixes))
            ]
            total_s, _ = self._run(prompts, OUTPUT_TOKENS)
            rates.append(self._streams * OUTPUT_TOKENS / total_s)
        return median(rates)

    def _first_token(self, length: int) -> float:
        times = [self._run([self._prompt(length)], 4)[1] for _ in range(3 * self._repeats + 2)]
        return 1e3 * median(times[2:])

    def _warm_prefix(self, length: int) -> float:
        prompt = self._prompt(length)
        times = [self._run([prompt], 4)[1] for _ in range(3 * self._repeats + 2)]
        return 1e3 * median(times[2:])

    def _prefill(self, length: int) -> float:
        rates = []
        for _ in range(self._repeats + 1):
            total_s, _ = self._run([self._prompt(length) for _ in range(PREFILL_STREAMS)], 1)
            rates.append(PREFILL_STREAMS * length / total_s)
        return median(rates[1:])

    def _prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self._generator.integers(0, self._vocab_size, length).tolist())

    def _run(self, prompts: Sequence[tuple[int, ...]], output: int, **sampling: float) -> tuple[float, float]:
        """Seconds until the last token of all, and until the first of any."""
        sampling = {"temperature": 0.0, **sampling}
        start, first_s = time.perf_counter(), 0.0
        for prompt in prompts:
            number = next(self._numbers)
            fields = Sampling(max_tokens=output, seed=number, **sampling)  # type: ignore[arg-type]
            self._engine.add(Add(f"r{number}", prompt, fields))
        while self._engine.has_work:
            outputs = self._engine.step()
            assert not any(each.finish_reason == "error" for each in outputs), outputs
            if outputs and not first_s:
                first_s = time.perf_counter() - start
        return time.perf_counter() - start, first_s


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.request_mixes", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=[""], metavar="NAME,...")
    arguments = parser.parse_args(argv)
    settings = from_environment(model=str(arguments.model), device=arguments.device, max_sequences=arguments.streams)
    gguf = open_gguf(settings.model)
    config = read_model_config(gguf)
    settings = replace(settings, context_length=min(config.context_length, MOST_CONTEXT))
    device = open_configured_device(settings)
    start = time.perf_counter()
    engine = load_engine(gguf, device, settings, lambda _done, _total: None)
    loaded_s = time.perf_counter() - start
    if not arguments.json:
        print(f"{arguments.model.name} on {device.description}, loaded in {loaded_s:.2f} s", flush=True)
    bench = Bench(engine, config.vocab_size, arguments.repeats, arguments.streams)
    for name, measure, unit in bench.cases():
        if not any(wanted in name for wanted in arguments.cases):
            continue
        value = measure()
        if arguments.json:
            print(json.dumps({"case": name, "value": value, "unit": unit}), flush=True)
        else:
            print(f"{name:28} {value:12,.{0 if unit == 'tok/s' else 2}f} {unit}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
