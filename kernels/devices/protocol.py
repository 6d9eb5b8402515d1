"""The one interface to a device: its ops, its weights, its memory, and how work reaches a GPU without waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.batch import AnyArray, Array, LayerCache
from kernels.cache_format import CacheFormat
from kernels.runtime.device_array import DeviceArray
from kernels.weights.parameters import SharedWeights, Weight

if TYPE_CHECKING:  # a CPU device needs nothing of CUDA's
    import kernels.ops.rope
    import kernels.reference.moe
    import kernels.reference.rope
    import kernels.weights.packed
    from kernels.ops.attention_plan import AttentionPlan
    from kernels.reference.matmul import Linear, Matrix
    from kernels.registry import Ops
    from kernels.runtime.compiler import Variant
    from kernels.runtime.gpu_spec import GpuSpec
    from kernels.runtime.memory import Arena, MemoryPlan
    from kernels.weights.packed import Experts, PackedMatrix, Projection

# What a model is given by its device and hands on to its ops, of whatever device.
AnyMatrix: TypeAlias = "PackedMatrix | Matrix"
AnyProjection: TypeAlias = "Projection | Sequence[Linear]"
AnyRouter: TypeAlias = "kernels.weights.packed.Router | kernels.reference.moe.Router"
AnyExperts: TypeAlias = "Experts | kernels.reference.moe.Experts"
AnyRotation: TypeAlias = "kernels.ops.rope.Rotation | kernels.reference.rope.Rotation"
AnyAttentionPlan: TypeAlias = "AttentionPlan | None"
AnyOps: TypeAlias = "Ops[AnyArray, AnyMatrix, AnyProjection, AnyRouter, AnyExperts, AnyRotation, AnyAttentionPlan]"
"""The ops of a device, as models see them.

A device casts its own ops to this: that they are only given what the same device made, types cannot say.
"""

Allocate = Callable[[tuple[int, ...], DTypeLike], Array]
"""Gives an array of a shape and a type, with arbitrary contents."""


class WeightStore(Protocol):
    """Makes of a model's weights what the device's ops work on; `load` then brings them there."""

    def table(self, weight: Weight) -> AnyMatrix:
        """An embedding table."""

    def tied_head(self, weight: Weight) -> tuple[AnyMatrix, AnyProjection]:
        """One matrix as embedding table and as output head."""

    def projection(self, weights: Sequence[Weight]) -> AnyProjection:
        """Matrices on one input, their outputs side by side."""

    def gate_up(self, weights: Sequence[Weight]) -> AnyProjection:
        """Gate and up projection, two tensors or a fused one (gate first)."""

    def experts(self, gate: Weight, up: Weight | None, down: Weight, shared: SharedWeights | None = None) -> AnyExperts:
        """The stacked experts of a layer; without ``up`` each expert's gate and up projection are one matrix."""

    def router(
        self,
        weight: Weight,
        num_used: int,
        input_weight: Any = None,
        output_scales: Any = None,
        *,
        renormalises: bool = True,
    ) -> AnyRouter:
        """A router that chooses ``num_used`` experts; ``input_weight`` and ``output_scales`` are what `vector` gave."""

    def vector(self, values: NDArray[np.float32]) -> AnyArray:
        """A small float32 array (norm, bias, sinks)."""

    def load(self, progress: Callable[[int, int], None]) -> list[str]:
        """Bring everything to the device; the names of the tensors that hold NaN or infinity.

        ``progress(num_bytes, total_bytes)`` is called on the way.
        """


class Device(Protocol):
    """What a model needs of a device."""

    @property
    def name(self) -> str:
        """``cpu`` or ``cuda:N``."""

    @property
    def description(self) -> str:
        """What the device is, for people: ``cpu``, or what the maker calls the GPU."""

    @property
    def budget_bytes(self) -> int | None:
        """Device memory that this process may use, decided when the device was opened; None: there is no limit."""

    @property
    def ops(self) -> AnyOps:
        """The ops that work on this device's arrays."""

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Sizes of attention heads that its ops can compute with; empty: any."""

    @property
    def state_dims(self) -> tuple[int, ...]:
        """Sizes of a delta net's heads that its ops can compute with; empty: any."""

    @property
    def max_vocab(self) -> int | None:
        """Most tokens of a vocabulary that its ops can draw from; None: any number."""

    @property
    def store(self) -> WeightStore:
        """Where a model's weights go."""

    @property
    def cache_format(self) -> CacheFormat:
        """What the KV cache keeps of a head of a token."""

    @property
    def activation_dtype(self) -> np.dtype[Any]:
        """Type of what goes from op to op, the residual stream and logits (float32) excepted."""

    def begin_step(self) -> Allocate[AnyArray]:
        """Start a forward pass: gives arrays that live until the next one starts."""

    def layer_cache(self, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int) -> LayerCache[AnyArray]:
        """K and V of a layer, in the layout of the device's attention; arbitrary contents, never given back."""

    def state_array(self, *shape: int) -> AnyArray:
        """States of a recurrent layer, of each slot first: float32, arbitrary contents, never given back."""

    def memory_bytes(self) -> int:
        """Device memory that this process uses now."""

    def verify_residency(self) -> list[str]:
        """A line for each buffer that is not plain device memory (managed, host, another device); none: all is well."""


class GpuEvent(Protocol):
    """A point in a GPU's stream of work."""

    def record(self) -> None:
        """It happens when all that is enqueued so far is done."""

    def synchronise(self, timeout_s: float) -> None:
        """Wait until it has happened; raises `kernels.errors.CudaFailure`, also after ``timeout_s``."""


class GpuGraph(Protocol):
    """Captured launches, replayed at the price of one."""

    def launch(self) -> None:
        """Enqueue them again; raises `kernels.errors.CudaFailure`."""


class GpuDevice(Device, Protocol):
    """What an engine needs of a GPU, which works on its own stream while the host goes on.

    `kernels.devices.cuda.CudaDevice` is one.
    """

    @property
    def gpu(self) -> GpuSpec:
        """What kernels are cut for."""

    @property
    def kv_cache(self) -> Arena:
        """Memory of the KV cache."""

    @property
    def step_buffers(self) -> Arena:
        """Memory of a step's inputs and of what it draws."""

    def allocate(
        self, plan: MemoryPlan, variants: Iterable[Variant] = (), copied: frozenset[int] = frozenset()
    ) -> None:
        """Take all the memory that will ever be used, and compile and load ``variants``.

        ``copied``: the numbers of the matrices that get a copy in float16, in the order in which they are laid out.
        Raises `kernels.errors.OutOfDeviceMemory` and `kernels.errors.CompileFailed`.
        """

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array in page-locked host memory, for the asynchronous copies."""

    def upload(self, arena: Arena, values: NDArray[Any]) -> DeviceArray:
        """A copy of ``values`` in ``arena``, ready for what is enqueued from now on. Any host memory will do."""

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """A copy in host memory, once all that is enqueued is done."""

    def copy_to_device_async(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """Enqueue a copy of the same size. A pinned source must stay as it is until the copy is done."""

    def uploader(self, source: NDArray[np.uint8]) -> Callable[[DeviceArray], None]:
        """What enqueues that an array becomes what a `pinned` buffer begins with: `copy_to_device_async`, sooner."""

    def copy_to_host_async(self, target: NDArray[Any], source: DeviceArray) -> None:
        """Enqueue a copy of some KB to a `pinned` array of the same size."""

    def event(self) -> GpuEvent:
        """An event of the device's stream, not yet recorded."""

    def capture(self, enqueue: Callable[[], None], name: str) -> GpuGraph:
        """What ``enqueue`` enqueues, as a graph; ``name`` tells which one failed. Its kernels must have run before."""

    def record(self, enqueue: Callable[[], None]) -> GpuGraph:
        """The few kernels that ``enqueue`` launches, doing nothing else, as what launches them one by one.

        They begin sooner than a graph. They must have run before.
        """


def is_gpu(device: Device) -> TypeGuard[GpuDevice]:
    """Whether ``device`` has memory and a stream of its own: every device that `open_device` opens but ``cpu``."""
    return device.name != "cpu"
