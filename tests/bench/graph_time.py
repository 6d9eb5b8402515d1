"""How long a kernel takes in a replayed graph of dependent launches."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from kernels.devices.cuda import CudaDevice

LAUNCHES = 16


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
    device.synchronise()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(3):
            graph.launch()
        device.synchronise()
        times.append((time.perf_counter() - start) / 3 / LAUNCHES * 1e6)
    return float(np.median(times))
