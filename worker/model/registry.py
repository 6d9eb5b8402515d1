"""Which family runs which architecture, and what the engine sees of a loaded model."""

from __future__ import annotations

from typing import Any, Protocol

from kernels.batch import Step
from kernels.devices.protocol import Device
from orcd.errors import ModelLoadFailed
from worker.model.config import ModelConfig, read_config, shown
from worker.model.families.gpt2 import GPT2
from worker.model.families.gpt_oss import GptOss
from worker.model.families.llama import Llama
from worker.model.gguf import GGUFFile
from worker.model.kv_cache import KVCache
from worker.model.weights import Progress, Weights


class Model(Protocol):
    """A loaded model. Each family implements this; what they share is ops."""

    @property
    def config(self) -> ModelConfig:
        """Its sizes."""

    @property
    def device(self) -> Any:
        """A `kernels.devices.protocol.Device`; where it works by itself, a `kernels.devices.cuda.CudaDevice`."""

    @property
    def recompute_at(self) -> int | None:
        """Length beyond which a sequence's cached K and V are void and must be computed again; None: never."""

    def bytes_per_block(self, block_tokens: int) -> int:
        """Bytes of one block of the KV cache, all layers together."""

    def allocate_cache(self, num_blocks: int, block_tokens: int) -> KVCache:
        """A KV cache on the model's device."""

    def forward(self, step: Step, cache: KVCache) -> Any:
        """Run one step: write K and V of its tokens, return logits [R, vocab] float32 of ``step.logit_rows``."""


_CLASSES: tuple[type[GPT2 | GptOss | Llama], ...] = (GPT2, GptOss, Llama)
FAMILIES = {name: family for family in _CLASSES for name in family.architectures}
"""Architecture, as ``general.architecture`` names it -> family."""


def read_model_config(gguf: GGUFFile) -> ModelConfig:
    """The configuration of the model in ``gguf``, read as its family declares it.

    Raises `ModelLoadFailed` for an architecture that no family has, and for a key that is wrong.
    """
    name = gguf.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelLoadFailed(
            f"{gguf.path}: the architecture (general.architecture) is {shown(name)}; "
            f"known are {', '.join(sorted(FAMILIES))}"
        )
    return read_config(gguf, name, FAMILIES[name].architectures[name])


def load_model(gguf: GGUFFile, device: Device, progress: Progress) -> Model:
    """The model in ``gguf`` on ``device``; raises `ModelLoadFailed` naming what is wrong with the file.

    ``progress(num_bytes, total_bytes)`` is called as weights are read and checked.
    """
    weights = Weights(gguf, device)
    model = assemble_model(read_model_config(gguf), weights, device)
    weights.load(progress)
    return model


def assemble_model(config: ModelConfig, weights: Weights, device: Device) -> Model:
    """Check tensors' names, types and shapes and put the model together, without reading the large ones.

    Raises `ModelLoadFailed`, also for a tensor that the family does not know.
    """
    weights.check_heads(config)
    model = FAMILIES[config.architecture](config, weights, device)
    weights.check_all_used()
    return model
