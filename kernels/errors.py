"""What can go wrong with a device: `DeviceUnavailable` when it is opened, the others on a CUDA device in use."""

from __future__ import annotations

# For the end of what `DeviceUnavailable` says.
INSTALL_CUDA = "install it with pip install 'orcd[cuda13]' (or cuda12)"
USE_CPU = "or run on the CPU with --device cpu (or ORCD_DEVICE=cpu)"


class DeviceUnavailable(Exception):
    """The device that was asked for cannot be used here; the message says what to do."""


class CudaFailure(Exception):
    """A launch, a copy or a kernel failed. Unless it was refused at launch, the process must be replaced."""

    def __init__(self, kernel: str, error: str) -> None:
        super().__init__(f"{kernel}: {error}")
        self.kernel = kernel  # as it is called in the .cu file; of an asynchronous error the last one launched
        self.error = error  # the driver's name of the error, or what else happened


class OutOfDeviceMemory(Exception):
    """Device memory does not hold what was planned."""

    def __init__(self, required_bytes: int, available_bytes: int) -> None:
        super().__init__(f"{required_bytes:,} bytes of device memory are needed, {available_bytes:,} are available")
        self.required_bytes = required_bytes
        self.available_bytes = available_bytes


class CompileFailed(Exception):
    """A kernel does not compile: a bug of ours, or a toolkit too old for the device. The text is the compiler's."""


class UnsupportedWeight(Exception):
    """A tensor that the CUDA kernels cannot work on; ``problem`` goes on where its name ends."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"tensor {name!r} {problem}")
        self.name = name
        self.problem = problem
