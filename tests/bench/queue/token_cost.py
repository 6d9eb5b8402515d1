"""What a token costs the Celery process: ``python -m tests.bench.queue.token_cost [--logprobs 5] [--lists]``.

No engine and no Redis: frames as an engine sends them go the way to the events of token logs and to Celery's results,
and the events from there to a client. The ids are random ones of the model that ships, so that their texts are those of
a real vocabulary, if a small one. Each step's processor time is counted for itself; the lower quartile of the rounds is
printed. With ``--lists`` nothing is packed, as for clients of older versions.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np

from orcd.events import Packing, decode_event, encode_event
from orcd.request import parse
from orcd.result import fold
from tasks.celery_ext.result_backend import in_json
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.engine.token_spellings import TokenSpellings
from tasks.dispatch.output_batcher import OutputBatcher
from tasks.dispatch.prompt_encoder import Prompt
from tests.conftest import DEMO_MODEL
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.dispatch.claims import claim
from worker import contract
from worker.engine.logits.logprob_records import logprob_records
from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers
from worker.text.detokenizer import Detokenizer

TOKENS_PER_JOB = 256
TOKENS_PER_FRAME = 4
FRAMES_PER_EVENT = 8
READING, CLIENT = "a client: events read", "a client: made a result"


@dataclass(slots=True)
class Costs:
    """Microseconds a token of each step, of each round; bytes a token that were written."""

    num_tokens: int
    us: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    num_bytes: dict[str, float] = field(default_factory=dict)
    _round_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the processor time of what is within."""
        start = time.process_time()
        yield
        self._round_s[name] += time.process_time() - start

    def end_round(self) -> None:
        """Note what each step took in all."""
        for name, seconds in self._round_s.items():
            self.us[name].append(1e6 * seconds / self.num_tokens)
        self._round_s.clear()

    def count(self, name: str, texts: Sequence[bytes]) -> None:
        """Note how long they are."""
        self.num_bytes[name] = sum(map(len, texts)) / self.num_tokens


class PlayedEngine:
    """Draws random tokens for ``num_jobs`` jobs, and reports so many alternatives to them (None: nothing)."""

    def __init__(self, num_jobs: int, num_top: int | None) -> None:
        tokenizer = tokenizers.from_metadata(open_gguf(DEMO_MODEL).metadata)
        self._generator = np.random.default_rng(1)
        self._ids = [each for each in range(256, tokenizer.vocab_size) if not tokenizer.is_special(each)]
        self._num_top = num_top
        self._names = [f"{number}#token-1" for number in range(num_jobs)]
        sampling = contract.Sampling(max_tokens=TOKENS_PER_JOB, logprobs=num_top)
        self._prompt = Prompt([1], sampling, lambda: Detokenizer(tokenizer), TokenSpellings(tokenizer.pieces))

    def frames(self) -> list[bytes]:
        """The bodies of the frames that it sends."""
        steps = range(TOKENS_PER_FRAME, TOKENS_PER_JOB + 1, TOKENS_PER_FRAME)
        return [contract.encode(self._outputs(is_last=step == TOKENS_PER_JOB))[4:] for step in steps]

    def jobs(self, packing: Packing) -> dict[str, ActiveJob]:
        """The jobs by the ids that it knows them by, just begun."""
        request = parse({"prompt": "x", "logprobs": self._num_top})
        begun = {}
        for name in self._names:
            job = ActiveJob(claim(request, packing=packing), self._prompt, READY, lambda outcome: None)
            job.request_id = name
            job.add()
            begun[name] = job
        return begun

    def _outputs(self, *, is_last: bool) -> contract.Outputs:
        reason: contract.FinishReason | None = "length" if is_last else None
        return contract.Outputs(
            tuple(
                contract.TokenOutput(name, 0, tuple(self._draw(TOKENS_PER_FRAME)), reason, self._logprobs())
                for name in self._names
            )
        )

    def _draw(self, count: int) -> list[int]:
        drawn: list[int] = self._generator.choice(self._ids, count, replace=False).tolist()
        return drawn

    def _logprobs(self) -> bytes | None:
        if self._num_top is None:
            return None
        top_ids = np.array([self._draw(self._num_top) for _ in range(TOKENS_PER_FRAME)], np.int32)
        numbers = -self._generator.exponential(3, (TOKENS_PER_FRAME, 1 + self._num_top)).astype(np.float32)
        return b"".join(logprob_records(numbers[:, 0], top_ids, numbers[:, 1:]))


def measure(num_jobs: int, num_top: int | None, num_rounds: int, packing: Packing = Packing.TOKENS) -> Costs:
    """Let jobs go through the Celery process as often as ``num_rounds``, after a first time."""
    engine = PlayedEngine(num_jobs, num_top)
    frames = engine.frames()
    costs = Costs(num_jobs * TOKENS_PER_JOB)
    costs.count("frames", frames)
    gc.freeze()
    for _ in range(num_rounds + 1):
        _run(costs, frames, engine.jobs(packing))
        costs.end_round()
    return costs


def _run(costs: Costs, frames: Sequence[bytes], jobs: dict[str, ActiveJob]) -> None:
    logs: defaultdict[str, list[bytes]] = defaultdict(list)
    batcher = OutputBatcher()
    for number, frame in enumerate(frames, 1):
        with costs.step("frames read"):
            event = contract.decode_event(frame)
        assert isinstance(event, contract.Outputs)
        with costs.step("outputs joined"):
            batcher.add(event.outputs)
        if number % FRAMES_PER_EVENT:
            continue
        with costs.step("outputs joined"):
            outputs = batcher.take_all()
        with costs.step("events made"):
            for output in outputs:
                jobs[output.request_id].process(output)
            appends = [job.take_append() for job in jobs.values()]
        with costs.step("events as JSON"):
            lines = [[encode_event(each.event, append.packing) for each in append.events] for append in appends]
        for name, written in zip(jobs, lines, strict=True):
            logs[name] += written
    with costs.step("results made"):
        results = [job.result for job in jobs.values()]
    with costs.step("results as JSON"):
        stored = [msgspec.json.encode(result, enc_hook=in_json) for result in results]
    with costs.step(READING):
        events = [[decode_event(line) for line in log] for log in logs.values()]
    with costs.step(CLIENT):
        folded = [fold("j", each) for each in events]
    assert [msgspec.json.encode(result) for result in folded] == stored
    costs.count("token log", [line for log in logs.values() for line in log])
    costs.count("Celery's result", stored)


def main(argv: Sequence[str]) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.queue.token_cost")
    parser.add_argument("--logprobs", type=int, help="alternatives a token; default: no log probabilities")
    parser.add_argument("--lists", action="store_true", help="as for clients of older versions")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args(argv)
    costs = measure(
        arguments.jobs, arguments.logprobs, arguments.rounds, Packing.NOTHING if arguments.lists else Packing.TOKENS
    )
    us = {name: float(np.quantile(taken[1:], 0.25)) for name, taken in costs.us.items()}
    print("| step | us a token |\n|---|---|")
    for name, taken in us.items():
        print(f"| {name} | {taken:.2f} |")
    whole = sum(taken for name, taken in us.items() if name not in (READING, CLIENT))
    print(f"| the Celery process, all | {whole:.2f} |\n\n| | bytes a token |\n|---|---|")
    for name, num_bytes in costs.num_bytes.items():
        print(f"| {name} | {num_bytes:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
