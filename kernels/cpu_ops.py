"""Ops that only the CPU device has: of gates of attention, convolutions and delta nets there are no CUDA kernels yet.

They are declared as those of `kernels.registry` are, and move there when they are in CUDA too.
"""

from __future__ import annotations

from typing import Protocol

import kernels.reference.activation
import kernels.reference.convolution
import kernels.reference.delta_net
import kernels.reference.norm
from kernels.batch import LayerState, Step
from kernels.registry import Array
from kernels.weights.parameters import DeltaNet, Norm


class CpuOps(Protocol[Array]):
    """What models compute with that have such layers; see `kernels.registry.Ops`."""

    def gate(self, x: Array, gates: Array, *, out: Array) -> None:
        """What attention found, through sigmoid gates."""

    def norm_rows(self, x: Array, norm: Norm[Array], *, out: Array) -> None:
        """Norm of each row."""

    def short_convolution(
        self, projected: Array, taps: Array, step: Step[Array], *, out_state: LayerState[Array], out: Array
    ) -> None:
        """A gated short convolution over each sequence."""

    def gated_delta_net(
        self, projected: Array, net: DeltaNet[Array], step: Step[Array], *, out_state: LayerState[Array], out: Array
    ) -> None:
        """Convolution, delta rule and gated norm over each sequence."""


class ReferenceCpuOps:
    """The ops in NumPy."""

    def __init__(self) -> None:
        self.gate = kernels.reference.activation.gate
        self.norm_rows = kernels.reference.norm.norm_rows
        self.short_convolution = kernels.reference.convolution.short_convolution
        self.gated_delta_net = kernels.reference.delta_net.gated_delta_net
