"""What a request is told when the model failed on it."""

from __future__ import annotations

from kernels.errors import OutOfDeviceMemory
from orcd.errors import OrcdError, VramOom, places


def step_error(error: Exception) -> OrcdError:
    """An exception of the model as an error of the request; other exceptions' texts may hold what users wrote."""
    if isinstance(error, OrcdError):
        return error
    if isinstance(error, MemoryError | OutOfDeviceMemory):
        return VramOom("the device ran out of memory on this request; shorten it or lower step_tokens")
    return OrcdError(f"the model failed on this request: {type(error).__name__} at {places(error)[-1]}")
