"""A step as CUDA graphs: one, or two between which the host takes part in the draw."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kernels.batch import AnyArray, SamplingParams
from kernels.devices.protocol import GpuDevice, GpuGraph
from kernels.runtime.device_array import DeviceArray

EnqueueDraw = Callable[[AnyArray, SamplingParams[DeviceArray]], None]
"""What enqueues the draw from logits [R, vocab], with all that the host takes part in."""


class StepParts(msgspec.Struct, frozen=True, eq=False):
    """What enqueues a step; all that changes from one such step to the next is on the device."""

    forward: Callable[[], AnyArray]  # gives the logits [R, vocab]
    sample: Callable[[AnyArray], None]  # the draw from them, where it needs nothing of the host
    draw: Callable[[AnyArray], None]  # the draw from them, with masks and reports


def step_parts(
    forward: Callable[[], AnyArray],
    draw: EnqueueDraw,
    device: GpuDevice,
    params: SamplingParams[DeviceArray],
    ids: DeviceArray,
) -> StepParts:
    """A step whose ``forward`` gives logits [R, vocab], from which ``ids`` [R] are drawn with ``params`` [R].

    ``draw`` is what enqueues the draw where the host takes part in it.
    """
    return StepParts(
        forward,
        sample=lambda logits: device.ops.sample(logits, params, out_ids=ids),
        draw=lambda logits: draw(logits, params),
    )


class StepGraph:
    """Launches a step: kernel by kernel, until it was captured."""

    def __init__(self, device: GpuDevice, parts: StepParts, name: str) -> None:
        """``name`` tells which step failed."""
        self._device = device
        self._parts = parts
        self._name = name
        self._step: GpuGraph | None = None
        self._forward: GpuGraph | None = None
        self._draw: GpuGraph | None = None
        self._logits: AnyArray | None = None  # of the forward pass that was enqueued last, or captured

    def capture_step(self) -> None:
        """Capture the step as one graph. Its kernels must have run before, as loading one breaks a capture."""
        parts = self._parts
        self._step = self._device.capture(lambda: parts.sample(parts.forward()), self._name)

    def capture_parts(self) -> None:
        """Capture it as two graphs; the same holds."""
        forward = self._device.capture(self._run_forward, f"{self._name}, forward pass")
        draw = self._device.capture(self._run_draw, f"{self._name}, draw")
        self._forward, self._draw = forward, draw  # both or none: a draw that is enqueued needs the pass before it, too

    def launch(self) -> None:
        """Enqueue the step."""
        if self._step is None:
            self._parts.sample(self._parts.forward())
        else:
            self._step.launch()

    def launch_forward(self) -> None:
        """Enqueue it up to its logits; `launch_draw` is to come next."""
        if self._forward is None:
            self._run_forward()
        else:
            self._forward.launch()

    def launch_draw(self) -> None:
        """Enqueue the rest of it."""
        if self._draw is None:
            self._run_draw()
        else:
            self._draw.launch()

    def _run_forward(self) -> None:
        self._logits = self._parts.forward()

    def _run_draw(self) -> None:
        assert self._logits is not None, "a draw without logits"
        self._parts.draw(self._logits)


class LateStepGraph(StepGraph):
    """Captures itself when it is launched for the second time, unless it was: many steps come only once."""

    def __init__(self, device: GpuDevice, parts: StepParts, name: str) -> None:
        super().__init__(device, parts, name)
        self._num_launches = 0
        self._num_forwards = 0

    def launch(self) -> None:
        """Enqueue the step."""
        self._num_launches += 1
        if self._num_launches == 2 and self._step is None:
            self.capture_step()
        super().launch()

    def launch_forward(self) -> None:
        """Enqueue it up to its logits; `launch_draw` is to come next."""
        self._num_forwards += 1
        if self._num_forwards == 2:
            self.capture_parts()
        super().launch_forward()
