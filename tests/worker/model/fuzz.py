"""Load damaged model files until something other than a clear error happens.

    python -m tests.worker.model.fuzz [--minutes N] [--seed S]

A file is inspected, and loaded as the engine and the Celery side load it: header, configuration, weights, tokenizer,
one step. The only outcomes allowed are success and `ModelLoadFailed`, within `MAX_SECONDS` and `MAX_MEMORY_BYTES`.
"""

from __future__ import annotations

import argparse
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.worker.model.stepping import logits_alone
from tests.worker.model.tiny import FAMILIES, write_tiny
from worker.commands.inspect import format_report, inspect_gguf
from worker.model.gguf import open_gguf
from worker.model.registry import load_model
from worker.text.tokenizer import from_metadata

MAX_SECONDS = 2.0
MAX_MEMORY_BYTES = 300 * 1024 * 1024
NUMBERS = [0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 32, 39, 64, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62,
           2**63 - 1, 2**63, 2**64 - 1]  # fmt: skip


class Seed:
    """A good file, cut where its tensor data begins: damage goes to what comes before."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        tensors = open_gguf(path).tensors.values()
        self.header_bytes = min(tensor.offset for tensor in tensors)
        # Arrays of the vocabulary are most of the header; the rest is where the numbers are that matter.
        self.infos_start = self.data.index(next(iter(tensors)).name.encode()) - 8


def damage(seed: Seed, rng: np.random.Generator) -> bytes:
    """The file with one to three random changes."""
    data = bytearray(seed.data)
    for _ in range(rng.integers(1, 4)):
        at = _place(seed, rng)
        match rng.integers(6):
            case 0:
                data[at] = rng.integers(256)
            case 1:
                data[at] ^= 1 << rng.integers(8)
            case 2:
                data[at : at + 4] = struct.pack("<I", NUMBERS[rng.integers(len(NUMBERS))] % 2**32)
            case 3:
                data[at : at + 8] = struct.pack("<Q", NUMBERS[rng.integers(len(NUMBERS))])
            case 4:
                del data[at : at + rng.integers(1, 64)]
            case 5:
                data[at:at] = rng.bytes(rng.integers(1, 64))
    return bytes(data[: rng.integers(len(data))]) if rng.random() < 0.05 else bytes(data)


def _place(seed: Seed, rng: np.random.Generator) -> int:
    first_kilobytes = min(2048, seed.header_bytes)
    ranges = [(0, first_kilobytes), (0, seed.header_bytes), (seed.infos_start, seed.header_bytes), (0, len(seed.data))]
    start, end = ranges[rng.integers(len(ranges))]
    return int(rng.integers(start, end))


def attempt(path: Path) -> str:
    """Load and run the file; returns what happened. Raises whatever else than `ModelLoadFailed` comes up."""
    try:
        gguf = open_gguf(path)
        format_report(inspect_gguf(gguf))
        model = load_model(gguf, open_device("cpu"), lambda _done, _total: None)
        tokenizer = from_metadata(gguf.metadata)
    except ModelLoadFailed as error:
        assert "\n" not in error.message and len(error.message) < 1000
        return "refused"
    ids = tokenizer.encode("a b", add_special=True)[:8] or [0]
    tokenizer.decode(ids)
    with np.errstate(all="raise", under="ignore"):  # a warning would show up in a user's terminal
        logits = logits_alone(model, [token_id % model.config.vocab_size for token_id in ids])
    return "ran" if np.isfinite(logits).all() else "ran to non-finite logits"


def memory_bytes() -> int:
    """Most resident memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(directory: Path, *, seed: int, until: float, max_files: int) -> Counter[str]:
    """Try damaged files until the time ``until`` (of `time.monotonic`) or ``max_files``; raises at a finding.

    The file that caused it stays in ``directory``.
    """
    seeds = [Seed(write_tiny(family, directory / f"{family}.gguf")) for family in FAMILIES]
    outcomes: Counter[str] = Counter()
    before_bytes = memory_bytes()
    path = directory / "damaged.gguf"
    while time.monotonic() < until and outcomes.total() < max_files:
        rng = np.random.default_rng([seed, outcomes.total()])
        path.write_bytes(damage(seeds[rng.integers(len(seeds))], rng))
        started = time.process_time()
        outcomes[attempt(path)] += 1
        seconds = time.process_time() - started
        assert seconds < MAX_SECONDS, f"file {outcomes.total() - 1} of seed {seed} took {seconds:.1f} s"
        grown_bytes = memory_bytes() - before_bytes
        assert grown_bytes < MAX_MEMORY_BYTES, f"file {outcomes.total() - 1} of seed {seed} took {grown_bytes} bytes"
    return outcomes


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.worker.model.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    directory = Path(tempfile.mkdtemp(prefix="orcd-fuzz-"))
    print(f"damaged files in {directory}")
    outcomes = run(directory, seed=arguments.seed, until=time.monotonic() + 60 * arguments.minutes, max_files=10**9)
    print(f"{outcomes.total()} files: " + ", ".join(f"{count} {what}" for what, count in outcomes.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
