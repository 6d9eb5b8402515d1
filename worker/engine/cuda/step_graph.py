"""A step as CUDA graphs: one, or two between which the host takes part in the draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from kernels.batch import AnyArray, HostIds, SamplingParams
from kernels.devices.protocol import GpuDevice, GpuGraph
from kernels.runtime.device_array import DeviceArray

EnqueueDraw = Callable[[AnyArray, SamplingParams[DeviceArray]], None]
"""What enqueues something that is done with logits [R, vocab]."""


class HostedDraw(NamedTuple):
    """A draw that the host takes part in."""

    draw: EnqueueDraw
    """With the masks that it has sent."""
    report: EnqueueDraw
    """The log probabilities of what was drawn, for it to read."""

    def enqueue(self, logits: AnyArray, params: SamplingParams[DeviceArray], *, reports: bool) -> None:
        """Enqueue the draw, and the log probabilities only if they are wanted: it ``reports`` them."""
        self.draw(logits, params)
        if reports:
            self.report(logits, params)


class StepParts(msgspec.Struct, frozen=True, eq=False):
    """What enqueues a step; all that changes from one such step to the next is on the device."""

    forward: Callable[[], AnyArray]  # gives the logits [R, vocab]
    sample: Callable[[AnyArray], None]  # the draw from them, where it needs nothing of the host
    draw: Callable[[AnyArray], None]  # the draw from them, with masks
    report: Callable[[AnyArray], None]  # the log probabilities of what was drawn
    tells_host: bool = False  # `sample` puts the ids where the host reads them
    is_short: bool = False  # it is of few kernels, which begin sooner if they are launched one by one


def step_parts(
    forward: Callable[[], AnyArray],
    hosted: HostedDraw,
    device: GpuDevice,
    params: SamplingParams[DeviceArray],
    ids: DeviceArray,
    host_ids: HostIds = None,
    *,
    draws: bool = True,
) -> StepParts:
    """A step whose ``forward`` gives logits [R, vocab], from which ``ids`` [R] are drawn with ``params`` [R].

    ``host_ids`` [R], page-locked: the draw puts them there, too. ``hosted`` is what enqueues the draw where the host
    takes part in it. ``draws`` False: ``forward`` has drawn, where the host does not.
    """

    def sample(logits: AnyArray) -> None:
        if draws:
            device.ops.sample(logits, params, out_ids=ids, host_ids=host_ids)

    return StepParts(
        forward,
        sample=sample,
        draw=lambda logits: hosted.draw(logits, params),
        report=lambda logits: hosted.report(logits, params),
        tells_host=host_ids is not None,
        is_short=not draws,
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
        self._report: GpuGraph | None = None
        self._logits: AnyArray | None = None  # of the forward pass that was enqueued last, or captured

    @property
    def tells_host(self) -> bool:
        """Whether `launch` leaves the ids where the host reads them."""
        return self._parts.tells_host

    def capture_step(self) -> None:
        """Capture the step as one graph. Its kernels must have run before, as loading one breaks a capture."""
        parts = self._parts

        def run() -> None:
            parts.sample(parts.forward())

        self._step = self._device.record(run) if parts.is_short else self._device.capture(run, self._name)

    def capture_parts(self) -> None:
        """Capture it as graphs of its forward pass, its draw and its reports; the same holds."""
        forward = self._device.capture(self._run_forward, f"{self._name}, forward pass")
        draw = self._device.capture(self._run_draw, f"{self._name}, draw")
        report = self._device.capture(self._run_report, f"{self._name}, reports")
        # All or none: what is enqueued needs what comes before it, too.
        self._forward, self._draw, self._report = forward, draw, report

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

    def launch_draw(self, *, reports: bool) -> None:
        """Enqueue the rest of it, with log probabilities of what is drawn only if it ``reports`` them."""
        if self._draw is None or self._report is None:
            self._run_draw()
        else:
            self._draw.launch()
        if not reports:
            return
        if self._report is None:
            self._run_report()
        else:
            self._report.launch()

    def _run_forward(self) -> None:
        self._logits = self._parts.forward()

    def _run_draw(self) -> None:
        assert self._logits is not None, "a draw without logits"
        self._parts.draw(self._logits)

    def _run_report(self) -> None:
        assert self._logits is not None, "reports without logits"
        self._parts.report(self._logits)


class LateStepGraph(StepGraph):
    """Captures itself when it is launched for the second time, unless it was: many steps come only once.

    A short one does so the first time, as it takes no longer.
    """

    def __init__(self, device: GpuDevice, parts: StepParts, name: str) -> None:
        super().__init__(device, parts, name)
        self._num_launches = 0
        self._num_forwards = 0

    def launch(self) -> None:
        """Enqueue the step."""
        self._num_launches += 1
        if self._step is None and (self._num_launches == 2 or self._parts.is_short):
            self.capture_step()
        super().launch()

    def launch_forward(self) -> None:
        """Enqueue it up to its logits; `launch_draw` is to come next."""
        self._num_forwards += 1
        if self._num_forwards == 2:
            self.capture_parts()
        super().launch_forward()
