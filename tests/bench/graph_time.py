"""How long a kernel takes in a replayed graph of dependent launches, by the device's clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cupy.cuda import runtime

from kernels.devices.cuda import CudaDevice

LAUNCHES = 16
GRAPHS = 5


def time_us(device: CudaDevice, enqueue: Callable[[int], None], num_copies: int) -> float:
    """Median microseconds of ``enqueue(copy)``, of `LAUNCHES` in one graph, with each of so many copies in turn.

    What it takes of the context's memory is given back after each.
    """
    context = device.context

    def enqueue_all() -> None:
        for number in range(LAUNCHES):
            mark = context.mark()
            enqueue(number % num_copies)
            context.release(mark)

    enqueue_all()
    graph = device.capture(enqueue_all, "bench")
    graph.launch()
    begin, end = runtime.eventCreate(), runtime.eventCreate()
    times = []
    for _ in range(5):
        graph.launch()  # so that the device is busy when the host has enqueued what is timed
        runtime.eventRecord(begin, device.stream.handle)
        for _ in range(GRAPHS):
            graph.launch()
        runtime.eventRecord(end, device.stream.handle)
        runtime.eventSynchronize(end)
        times.append(runtime.eventElapsedTime(begin, end) * 1000 / GRAPHS / LAUNCHES)
    runtime.eventDestroy(begin)
    runtime.eventDestroy(end)
    return float(np.median(times))
