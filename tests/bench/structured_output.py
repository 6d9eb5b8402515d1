"""Structured output: whether every answer fits its schema, what a mask costs, and how fast an engine is with them.

    python -m tests.bench.structured_output [--model MODEL.gguf] [--device cpu] [--schemas 200] [--seed 19]
        [--streams 256]

A real Redis and a worker. ``--schemas`` are drawn by ``--seed``; of each a document is asked for at temperature 1, once
with as few tokens as the worker says it takes, once with 40 more and once with 200. Then documents of random tokens are
drawn from the masks alone, which are timed. At last an engine alone has ``--streams``, of which none, one in twenty and
all must fit the schema of `tests.bench.structured_rates`. With 0 schemas or streams that part is left out. Exit code 1
if an answer does not parse, does not fit its schema, or if more than 15 of 100 schemas are refused.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from orcd.client import Client
from orcd.errors import InvalidRequest
from tasks.local.redis_server import RedisServer
from tests.bench.structured_rates import measure_rates, rate_lines
from tests.conftest import DEMO_MODEL
from tests.tasks.worker_process import WorkerProcess
from tests.worker.text.grammar.schemas import make_schemas
from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text

SPARE = (0, 40, 200)
"""Tokens that an answer may have beyond those of the shortest one."""
MOST_REFUSED = 0.15
TIMED_SCHEMAS = 50
_LEAST = re.compile(r"at least (\d+)$")


@dataclass(slots=True)
class Outcome:
    """What came of the schemas; times in seconds."""

    num_schemas: int
    refused: Counter[str] = field(default_factory=Counter)
    num_answers: int = 0
    wrong: list[str] = field(default_factory=list)
    mask_s: list[float] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if all was as it should be."""
        return int(bool(self.wrong) or self.refused.total() > MOST_REFUSED * self.num_schemas)

    def lines(self) -> list[str]:
        """What a person reads."""
        masks = [1e6 * float(np.quantile(self.mask_s, share)) for share in (0.5, 0.99)] if self.mask_s else [0.0, 0.0]
        mean = 1e6 * float(np.mean(self.mask_s)) if self.mask_s else 0.0
        return [
            f"{self.num_schemas} schemas, {self.refused.total()} refused; of {self.num_answers} answers "
            f"{self.num_answers - len(self.wrong)} parse and fit",
            *(f"refused {number}: {reason}" for reason, number in self.refused.most_common()),
            f"a mask and the token that follows: p50 {masks[0]:.0f} us, mean {mean:.0f} us, p99 {masks[1]:.0f} us",
            *self.wrong,
        ]


def ask_all(client: Client, schemas: Sequence[Any], outcome: Outcome) -> None:
    """Ask for documents of all schemas."""
    shortest = client.submit_many([_request(schema, number, 1) for number, schema in enumerate(schemas)])
    jobs: list[tuple[int, str]] = []
    for number, job_id in enumerate(shortest):
        result = client.result(job_id)
        found = _LEAST.search(result.error.message) if result.error else None
        if found is None and result.error is not None:
            outcome.refused[result.error.message] += 1
            continue
        least = int(found[1]) if found else 1
        requests = [_request(schemas[number], number, least + spare) for spare in SPARE]
        jobs += [(number, each) for each in client.submit_many(requests)]
    for number, job_id in jobs:
        outcome.num_answers += 1
        result = client.result(job_id)
        try:
            jsonschema.validate(json.loads(result.raise_for_error().text), schemas[number])
            assert result.schema_valid
        except Exception as error:
            outcome.wrong.append(f"schema {number}: {type(error).__name__} for {result.text!r}")


def time_masks(model: Path, schemas: Sequence[Any], seed: int, outcome: Outcome) -> None:
    """Draw documents of random tokens, without a model."""
    tokenizer = tokenizers.from_metadata(open_gguf(model).metadata)
    compiler = GrammarCompiler(tokenizer)
    mask = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
    for number, schema in enumerate(schemas):
        try:
            matcher = compiler.compile(grammar_text("json_schema", schema))
        except InvalidRequest:  # counted where the whole system refused it
            continue
        chance, num_left = random.Random(f"{seed} {number}"), (matcher.min_tokens() or 0) + SPARE[-1]
        while num_left and not matcher.is_complete:
            mask[:] = 0
            start = time.perf_counter()
            matcher.write_mask(memoryview(mask).cast("B"), num_left)
            spent = time.perf_counter() - start
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            token_id = int(chance.choice(allowed))
            start = time.perf_counter()
            matcher.take(token_id, num_left)
            outcome.mask_s.append(spent + time.perf_counter() - start)
            num_left -= 1


def measure(model: Path, device: str, num_schemas: int, seed: int) -> Outcome:
    """All of it, on a worker of its own."""
    schemas = make_schemas(seed, num_schemas)
    outcome = Outcome(num_schemas)
    if not schemas:
        return outcome
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        variables = {"ORCD_DEVICE": device}
        with WorkerProcess(server.url, model, Path(folder), **variables), Client(server.url) as client:
            ask_all(client, schemas, outcome)
    time_masks(model, schemas[:TIMED_SCHEMAS], seed, outcome)
    return outcome


def main(argv: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.structured_output", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--seed", type=int, default=19)
    parser.add_argument("--streams", type=int, default=256)
    arguments = parser.parse_args(argv)
    outcome = measure(arguments.model, arguments.device, arguments.schemas, arguments.seed)
    print("\n".join(outcome.lines()), flush=True)
    if arguments.streams:
        for rates in measure_rates(arguments.model, arguments.device, arguments.streams):
            print("\n".join(rate_lines(rates, arguments.streams)))
    return outcome.exit_code


def _request(schema: Any, seed: int, max_tokens: int) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return {"prompt": "old pond", "seed": seed, "max_tokens": max_tokens, "response_format": form}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
