"""The old name of `kernels.step.Step`, until nobody uses it."""

from kernels.step import Step as Batch

__all__ = ["Batch"]
