"""Load damaged model files until something other than a clear error happens.

    python -m tests.worker.model.fuzz [--minutes N] [--seed S]

Bytes are changed, and values of metadata: of keys that the file has, or could have. A file is inspected, and loaded as
the engine and the Celery side load it: header, configuration, weights, tokenizer, one step. All that is allowed is
success and `ModelLoadFailed`, within `MAX_SECONDS` and `MAX_MEMORY_BYTES`.
"""

from __future__ import annotations

import argparse
import math
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.models.files import SMALL
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


KEYS = (
    *("nextn_predict_layers", "rope.freq_base_swa", "rope.scale_linear", "rope.dimension_sections"),
    *(f"rope.scaling.{name}" for name in ("type", "factor", "original_context_length", "attn_factor", "finetuned")),
    *(
        f"rope.scaling.yarn_{name}"
        for name in ("attn_factor", "ext_factor", "log_multiplier", "beta_fast", "beta_slow")
    ),
    *(f"attention.{name}" for name in ("key_length", "sliding_window", "sliding_window_pattern", "scale", "causal")),
    *(f"attention.{name}" for name in ("key_length_swa", "shared_kv_layers", "temperature_scale")),
    *(f"expert_{name}" for name in ("count", "used_count", "feed_forward_length", "shared_feed_forward_length")),
    *("expert_weights_scale", "expert_weights_norm", "logit_scale", "final_logit_softcapping"),
    *(f"ssm.{name}" for name in ("conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size")),
    *("shortconv.l_cache", "full_attention_interval", "attention.recurrent_layers", "attention.head_count_kv"),
)
"""Keys that files of today have, without their architecture."""
SCALARS: list[tuple[int, bytes]] = [
    *((4, struct.pack("<I", number % 2**32)) for number in (0, 1, 2, 3, 4, 64, 2**16, 2**31, 2**32 - 1)),
    *((5, struct.pack("<i", number)) for number in (-1, -(2**31))),
    *((6, struct.pack("<f", number)) for number in (0, -0.0, 1, 0.5, -1, 1e-45, 1e30, math.inf, -math.inf, math.nan)),
    *((7, bytes([flag])) for flag in (0, 1, 2)),
    *((12, struct.pack("<d", number)) for number in (1e300, 5e-324)),
]
TEXTS = [b"", b"none", b"linear", b"yarn", b"longrope", b"gemma4", b"llama", b"gpt2", b"qwen35", b"deepseek-llm",
         b"mmproj", b"\xff", b"x" * 4096]  # fmt: skip


class Seed:
    """A good file in parts: ``pairs`` of encoded keys and values, what describes its tensors, and their data.

    Bytes are damaged before the tensors' data.
    """

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        tensors = open_gguf(path).tensors.values()
        self.header_bytes = min(tensor.offset for tensor in tensors)
        # Arrays of the vocabulary are most of the header; the rest is where the numbers are that matter.
        self.infos_start = self.data.index(next(iter(tensors)).name.encode()) - 8
        self.pairs: dict[bytes, bytes] = {}
        at = 24
        while at < self.infos_start:
            key, at = self._string(at)
            end = self._value_end(at)
            self.pairs[key], at = self.data[at:end], end
        assert at == self.infos_start

    def with_values(self, values: Mapping[bytes, bytes]) -> bytes:
        """The file with other values of some keys."""
        pairs = {**self.pairs, **values}
        infos = self.data[self.infos_start : self.header_bytes].rstrip(b"\0")
        header = self.data[:16] + struct.pack("<Q", len(pairs)) + b"".join(_text(k) + v for k, v in pairs.items())
        # The zeros that end the last offset may be padding too, so all there can have been are kept.
        header += infos + bytes(max(0, self.header_bytes - self.infos_start - len(infos)))
        return header + bytes(-len(header) % 32) + self.data[self.header_bytes :]

    def _string(self, at: int) -> tuple[bytes, int]:
        end = at + 8 + struct.unpack_from("<Q", self.data, at)[0]
        return self.data[at + 8 : end], end

    def _value_end(self, at: int) -> int:
        (kind,) = struct.unpack_from("<I", self.data, at)
        if kind == 8:
            return self._string(at + 4)[1]
        if kind != 9:
            return at + 4 + SIZES[kind]
        kind, count = struct.unpack_from("<IQ", self.data, at + 4)
        at += 16
        if kind != 8:
            return at + int(count) * SIZES[kind]
        for _ in range(count):
            _, at = self._string(at)
        return at


SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def change(seed: Seed, rng: np.random.Generator) -> bytes:
    """The file with other values of one to four keys."""
    architecture = seed.pairs[b"general.architecture"][12:]
    new = [architecture + b"." + key.encode() for key in KEYS]
    known = list(seed.pairs)
    places = [new if rng.random() < 0.6 else known for _ in range(rng.integers(1, 5))]
    return seed.with_values({keys[rng.integers(len(keys))]: _any_value(rng) for keys in places})


def _any_value(rng: np.random.Generator) -> bytes:
    """The type and the bytes of some value."""
    kind, value = SCALARS[rng.integers(len(SCALARS))]
    match rng.choice(4, p=[0.6, 0.2, 0.05, 0.15]):
        case 0:
            return struct.pack("<I", kind) + value
        case 1:
            return struct.pack("<I", 8) + _text(TEXTS[rng.integers(len(TEXTS))])
        case 2:
            texts = [_text(TEXTS[at]) for at in rng.integers(len(TEXTS), size=rng.integers(8))]
            return struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(texts)
        case _:
            alike = [each[1] for each in SCALARS if each[0] == kind]
            values = [alike[at] for at in rng.integers(len(alike), size=rng.integers(8))]
            return struct.pack("<IIQ", 9, kind, len(values)) + b"".join(values)


def damage(seed: Seed, rng: np.random.Generator) -> bytes:
    """The file with one to three random changes."""
    data = bytearray(seed.data)
    for _ in range(rng.integers(1, 4)):
        at = min(_place(seed, rng), len(data) - 1)
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
        with np.errstate(all="raise", under="ignore"):  # a warning would show up in a user's terminal
            gguf = open_gguf(path)
            format_report(inspect_gguf(gguf))
            model = load_model(gguf, open_device("cpu"), lambda _done, _total: None)
            tokenizer = from_metadata(gguf.metadata)
    except ModelLoadFailed as error:
        assert "\n" not in error.message and len(error.message) < 1000
        return "refused"
    ids = tokenizer.encode("a b", add_special=True)[:8] or [0]
    tokenizer.decode(ids)
    with np.errstate(all="raise", under="ignore"):
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
    seeds += map(Seed, SMALL.values())
    outcomes: Counter[str] = Counter()
    before_bytes = memory_bytes()
    path = directory / "damaged.gguf"
    while time.monotonic() < until and outcomes.total() < max_files:
        rng = np.random.default_rng([seed, outcomes.total()])
        how = damage if rng.random() < 0.5 else change
        path.write_bytes(how(seeds[rng.integers(len(seeds))], rng))
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
