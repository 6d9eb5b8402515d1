"""Weights on the CPU device: they stay where they are, usually in a mapped file, and are expanded when used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.reference.matmul import Linear, Matrix, TileBudget
from kernels.reference.moe import Expert, Experts, Router, SharedExpert
from kernels.weights.dequant import is_finite
from kernels.weights.parameters import SharedWeights, Weight

CHECKED_BYTES = 1 << 24  # of a tensor at a time

Projection = tuple[Linear, ...]


class CpuWeightStore:
    """What `kernels.weights.weight_store.PackedWeightStore` is for a CUDA device.

    ``budget`` bounds the expanded tiles that stay in memory.
    """

    def __init__(self, budget: TileBudget) -> None:
        self._budget = budget
        self._weights: list[Weight] = []

    def table(self, weight: Weight) -> Matrix:
        """An embedding table."""
        self._weights.append(weight)
        return self._matrix(weight, weight.data)

    def tied_head(self, weight: Weight) -> tuple[Matrix, Projection]:
        """One matrix as embedding table and as output head."""
        head = self.projection([weight])
        return head[0].matrix, head

    def projection(self, weights: Sequence[Weight]) -> Projection:
        """Matrices on one input, their outputs side by side."""
        self._weights += weights
        return tuple(Linear(self._matrix(weight, weight.data), weight.bias) for weight in weights)

    def gate_up(self, weights: Sequence[Weight]) -> Projection:
        """Gate and up projection, two tensors or a fused one (gate first)."""
        return self.projection(weights)

    def experts(self, gate: Weight, up: Weight | None, down: Weight, shared: SharedWeights | None = None) -> Experts:
        """The stacked experts of a layer; without ``up`` each expert's gate and up projection are one matrix."""
        return Experts(self._routed(gate, up, down), self._shared(shared) if shared else None)

    def _routed(self, gate: Weight, up: Weight | None, down: Weight) -> tuple[Expert, ...]:
        if up is None:
            self._weights += (gate, down)
            half = gate.num_outputs // 2
            return tuple(
                Expert(
                    Linear(self._matrix(gate, both[:half])),
                    Linear(self._matrix(gate, both[half:])),
                    Linear(self._matrix(down, last)),
                )
                for both, last in zip(gate.data, down.data, strict=True)
            )
        self._weights += (gate, up, down)
        layers = [
            [
                Linear(self._matrix(weight, data), None if weight.bias is None else weight.bias[number])
                for number, data in enumerate(weight.data)
            ]
            for weight in (gate, up, down)
        ]
        return tuple(Expert(*each) for each in zip(*layers, strict=True))

    def _shared(self, shared: SharedWeights) -> SharedExpert:
        [gate], [up], [down] = (self.projection([weight]) for weight in (shared.gate, shared.up, shared.down))
        return SharedExpert(Expert(gate, up, down), shared.output_gate)

    def router(
        self,
        weight: Weight,
        num_used: int,
        input_weight: NDArray[np.float32] | None = None,
        output_scales: NDArray[np.float32] | None = None,
        *,
        renormalises: bool = True,
    ) -> Router:
        """A router of ``num_used`` experts."""
        self._weights.append(weight)
        matrix = self._matrix(weight, weight.data)
        return Router(matrix, weight.bias, num_used, input_weight, output_scales, renormalises)

    def vector(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A small float32 array."""
        return values

    def load(self, progress: Callable[[int, int], None]) -> list[str]:
        """Read every weight once, so that the first request finds its pages in memory.

        Returns the names of the tensors that hold NaN or infinity. ``progress(num_bytes, total_bytes)`` is called on
        the way.
        """
        total_bytes = sum(weight.data.nbytes for weight in self._weights)
        done_bytes = 0
        bad = []
        for weight in self._weights:
            rows = weight.data.reshape(-1, weight.data.shape[-1])
            step = max(1, CHECKED_BYTES // rows.shape[1])
            finite = True
            for start in range(0, rows.shape[0], step):
                part = rows[start : start + step]
                finite = finite and is_finite(weight.format, part)
                done_bytes += part.nbytes
                progress(done_bytes, total_bytes)
            if not finite:
                bad.append(weight.name)
        return bad

    def _matrix(self, weight: Weight, data: NDArray[np.uint8]) -> Matrix:
        return Matrix(weight.format, (data.shape[0], weight.num_inputs), data, self._budget)
