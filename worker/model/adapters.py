"""Which adapter runs which architecture, and what the engine sees of a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from kernels.device import Device
from kernels.step import Step
from worker.model.config import ModelConfig, read_config
from worker.model.gguf import GGUFFile
from worker.model.gpt2 import GPT2
from worker.model.gpt_oss import GptOss
from worker.model.kv_cache import KVCache
from worker.model.llama import Llama
from worker.model.phi3 import Phi3
from worker.model.weights import Progress, Weights


class Model(Protocol):
    """A loaded model. Adapters implement this; what they share is ops."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> Any:
        """A `kernels.device.Device`; where it works by itself, a `kernels.gpu.CudaDevice`."""

    @property
    def recompute_at(self) -> int | None:
        """Length beyond which a sequence's cached K and V are void and must be computed again; None: never."""

    def bytes_per_block(self, block_tokens: int) -> int:
        """Bytes of one block of the KV cache, all layers together."""

    def allocate_cache(self, num_blocks: int, block_tokens: int) -> KVCache:
        """A KV cache on the model's device."""

    def forward(self, step: Step, cache: KVCache) -> Any:
        """Run one step: write K and V of its tokens, return logits [R, vocab] float32 of ``step.logit_rows``."""


_ADAPTERS: dict[str, Callable[[ModelConfig, Weights, Device], Model]] = {
    "gpt-oss": GptOss,
    "gpt2": GPT2,
    "llama": Llama,
    "phi3": Phi3,
    "qwen2": Llama,
    "qwen3": Llama,
}


def load_model(gguf: GGUFFile, device: Device, progress: Progress) -> Model:
    """The model in ``gguf`` on ``device``; raises `ModelLoadFailed` naming what is wrong with the file.

    ``progress(num_bytes, total_bytes)`` is called as weights are read and checked.
    """
    weights = Weights(gguf, device)
    model = assemble_model(read_config(gguf), weights, device)
    weights.load(progress)
    return model


def assemble_model(config: ModelConfig, weights: Weights, device: Device) -> Model:
    """Check tensors' names, types and shapes and put the adapter together, without reading the large ones."""
    weights.check_heads(config)
    model = _ADAPTERS[config.architecture](config, weights, device)
    weights.check_all_used()
    return model
