"""What bounds a model of real shape, to compare measurements with: ``python -m tests.bench.roofline [NAME,...]``.

For each of the models of `tests.bench.make_model`: the bytes of weights that a token reads, and the tokens per second
that an H200 could give if it did nothing but read memory or multiply, whichever takes longer in a step, and a prompt's
products before that. Streams have 128 tokens in and 256 out; experts are read as so many tokens choose on average. Two
pairs of rates: those of the data sheet, and those that a copy of memory and the vendor's library reach on the card.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import NamedTuple

from kernels.weights.formats import FORMATS
from tests.bench.hybrid_specs import INTERVAL, STATE_SIZE, VALUE_HEADS
from tests.bench.make_model import MODELS
from tests.bench.model_specs import ModelSpec, TensorSpec


class Peaks(NamedTuple):
    """What a card can do."""

    bytes_per_s: float
    flops: float  # of dense float16 products


DATA_SHEET = Peaks(4.8e12, 989e12)
MEASURED = Peaks(4.3e12, 780e12)  # 8 GB copied, read and written; 8,192 x 8,192 x 8,192 random numbers by cuBLAS
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 256


@dataclass(slots=True)
class Cost:
    """Bytes of weights and operations of a token in matrices of one kind, all experts counted."""

    num_bytes: float = 0.0
    operations: float = 0.0

    def add(self, tensor: TensorSpec) -> None:
        """Count a tensor."""
        num_elements = math.prod(tensor.shape)
        self.num_bytes += FORMATS[tensor.format].row_bytes(num_elements)
        self.operations += 2 * num_elements if len(tensor.shape) > 1 else 0


class Roofline:
    """Of one model on a card."""

    def __init__(self, spec: ModelSpec, peaks: Peaks) -> None:
        self._peaks = peaks
        keys = spec.keys
        self._num_experts, self._num_used = keys.get("expert_count", 1), keys.get("expert_used_count", 1)
        self._all, self._experts, self._head = Cost(), Cost(), Cost()
        is_tied = not any(tensor.name.startswith("output.") for tensor in spec.tensors)
        for tensor in spec.tensors:
            if tensor.name.startswith("token_embd"):
                kind = self._head if is_tied else Cost()  # a row of an embedding is nothing
            else:
                kind = (
                    self._head
                    if tensor.name.startswith("output.")
                    else self._experts
                    if "_exps" in tensor.name
                    else self._all
                )
            kind.add(tensor)
        has_states = spec.architecture.startswith("qwen35")
        num_layers = keys["block_count"]
        num_attending = num_layers // INTERVAL if has_states else num_layers
        head_dim = keys.get("attention.key_length") or keys["embedding_length"] // keys["attention.head_count"]
        self._token_bytes = num_attending * keys["attention.head_count_kv"] * head_dim * 2 * 2  # keys and values
        self._state_bytes = 2 * (num_layers - num_attending) * VALUE_HEADS * STATE_SIZE**2 * 4  # read and written

    def weight_bytes(self, num_tokens: int = 1) -> float:
        """That so many tokens read together."""
        read = 1 - (1 - self._num_used / self._num_experts) ** num_tokens
        return self._all.num_bytes + self._head.num_bytes + read * self._experts.num_bytes

    def operations(self, *, has_head: bool = True) -> float:
        """Of a token."""
        used = self._num_used / self._num_experts * self._experts.operations
        return self._all.operations + used + (self._head.operations if has_head else 0.0)

    def step_s(self, streams: int) -> float:
        """The least time of a decode step, of sequences half of which is there."""
        context = PROMPT_TOKENS + OUTPUT_TOKENS // 2
        moved = self.weight_bytes(streams) + streams * (context * self._token_bytes + self._state_bytes)
        return max(moved / self._peaks.bytes_per_s, streams * self.operations() / self._peaks.flops)

    def tokens_per_s(self, streams: int) -> float:
        """From the first prompt to the last token."""
        prompt_s = PROMPT_TOKENS * streams * self.operations(has_head=False) / self._peaks.flops
        return OUTPUT_TOKENS * streams / (OUTPUT_TOKENS * self.step_s(streams) + prompt_s)


def main() -> None:
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else list(MODELS)
    streams = (1, 64, 256)
    columns = " ".join(f"{n:>7}" for n in streams)
    print(f"{'':43} {'data sheet':>23}   {'measured':>23}")
    print(f"{'model':20} {'GB a token':>10} {'GFLOP':>6} {'prompt':>6} {columns} | {columns}")
    for name in names:
        layers, describe = MODELS[name]
        models = [Roofline(describe(layers), peaks) for peaks in (DATA_SHEET, MEASURED)]
        rates = (
            " ".join(f"{model.tokens_per_s(n) if n > 1 else 1 / model.step_s(1):7,.0f}" for n in streams)
            for model in models
        )
        operations = models[0].operations() / 1e9, models[0].operations(has_head=False) / 1e9
        print(
            f"{name:20} {models[0].weight_bytes() / 1e9:10.3f} {operations[0]:6.2f} {operations[1]:6.2f} "
            + " | ".join(rates)
        )


if __name__ == "__main__":
    main()
