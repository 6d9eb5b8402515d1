"""Which family runs which architecture, and what the engine sees of a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import msgspec
import numpy as np

from kernels.batch import AnyArray, Step
from kernels.devices.protocol import Device
from orcd.errors import ModelLoadFailed
from worker.model.config import Architecture, ModelConfig, read_config
from worker.model.families.gemma import Gemma
from worker.model.families.gpt2 import GPT2
from worker.model.families.gpt_oss import GptOss
from worker.model.families.lfm2 import Lfm2
from worker.model.families.llama import Llama
from worker.model.families.muse_glimmer import MuseGlimmer
from worker.model.families.qwen35 import Qwen35
from worker.model.gguf import GGUFFile
from worker.model.kv_cache import KVCache, allocate_cache, bytes_per_block, bytes_per_state
from worker.model.metadata_keys import shown
from worker.model.other_architectures import NEEDS
from worker.model.weights import Progress, Weights


class Family(Protocol):
    """A model's forward pass as a sequence of ops. What families share is ops, and how weights are read."""

    architectures: ClassVar[Mapping[str, Architecture]]
    """Those that it runs, by the names that files have for them."""

    def __init__(self, config: ModelConfig, weights: Weights, device: Device) -> None:
        """Ask for every tensor of the model; raises `ModelLoadFailed`."""

    @property
    def recompute_at(self) -> int | None:
        """See `Model.recompute_at`."""

    def forward(self, step: Step[AnyArray], cache: KVCache) -> AnyArray:
        """Run one step: write K and V of its tokens, return logits [R, vocab] float32 of ``step.logit_rows``."""


class Model(msgspec.Struct, frozen=True, eq=False):
    """A loaded model, as an engine sees it: its family's forward pass on a device."""

    config: ModelConfig
    device: Device
    forward: Callable[[Step[AnyArray], KVCache], AnyArray]
    """See `Family.forward`."""
    recompute_at: int | None
    """Length beyond which a sequence's cached K and V are void and must be computed again; None: never."""
    one_kernel_contexts: Mapping[int, int] = {}
    """Steps of so many sequences run all layers in one kernel up to this context length; others never."""
    draws_in_one_kernel: bool = False
    """Whether these steps may draw, too (`kernels.batch.Step.greedy`)."""
    one_kernel_obstacle: str | None = None
    """Why none does, in words in which "it" is that kernel."""

    def bytes_per_block(self, block_tokens: int) -> int:
        """Bytes of one block of the KV cache, all layers together."""
        return bytes_per_block(self.config, self.device.cache_format, block_tokens)

    @property
    def bytes_per_state(self) -> int:
        """Bytes of one state slot, all recurrent layers together; 0: the model has none."""
        return bytes_per_state(self.config)

    def allocate_cache(self, num_blocks: int, block_tokens: int, num_states: int = 0) -> KVCache:
        """A KV cache on the model's device, and ``num_states`` state slots for a model with recurrent layers."""
        return allocate_cache(self.config, self.device, num_blocks, block_tokens, num_states)


_CLASSES: tuple[type[Family], ...] = (Gemma, GPT2, GptOss, Lfm2, Llama, MuseGlimmer, Qwen35)
FAMILIES = {name: family for family in _CLASSES for name in family.architectures}
"""Architecture, as ``general.architecture`` names it -> family."""
ARCHITECTURES = {name: family.architectures[name] for name, family in FAMILIES.items()}

_MTP_TENSORS = r"blk\.\d+\.nextn\..*"
"""What predicts further tokens, which a file may hold for programs that guess ahead."""
_MTP_MATRIX = "nextn.eh_proj.weight"
"""What every block has that predicts them, and no other."""
_NO_MODELS = {
    "mmproj": "is a vision projector (mmproj), which goes with a model; give the file of the model itself",
    "adapter": "is an adapter (LoRA), which goes with a model; give a file of the model that has it merged",
    "imatrix": "is an importance matrix, from which quantised files are made; give the file of a model",
}
"""``general.type`` of files that are no models -> what is said of them."""


def read_model_config(gguf: GGUFFile) -> ModelConfig:
    """The configuration of the model in ``gguf``, read as its family declares it.

    Raises `ModelLoadFailed` for an architecture that no family has, and for a key that is wrong.
    """
    name = gguf.metadata.get("general.architecture")
    kind = "mmproj" if name == "clip" else gguf.metadata.get("general.type")
    if isinstance(kind, str) and kind in _NO_MODELS:
        raise ModelLoadFailed(f"{gguf.path}: {_NO_MODELS[kind]}")
    if not isinstance(name, str) or name not in FAMILIES:
        need = f", which {NEEDS[name]}" if isinstance(name, str) and name in NEEDS else ""
        raise ModelLoadFailed(
            f"{gguf.path}: the architecture (general.architecture) is {shown(name)}{need}; "
            f"orcd runs {', '.join(sorted(FAMILIES))}"
        )
    return read_config(gguf, name, ARCHITECTURES)


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

    Only those are read whose rows go to several projections (`worker.model.weights.RowPart`). Raises `ModelLoadFailed`,
    also for a tensor that the family does not know.
    """
    weights.check_limits(config)
    family = FAMILIES[config.architecture](config, weights, device)
    weights.ignore(_MTP_TENSORS, *ARCHITECTURES[config.architecture].ignored_tensors)
    for index in range(config.num_layers, config.num_layers + config.num_mtp_layers):
        block = weights.layer(index)
        if _MTP_MATRIX in block:  # else it is a layer like the others, and the number of such blocks is wrong
            block.ignore(r".*")
    weights.check_all_used()
    # Damaged weights may overflow: no reason for a warning, as the sampler refuses what comes out.
    forward = np.errstate(over="ignore", invalid="ignore")(family.forward)
    if isinstance(family, Llama):
        kernel = family.one_kernel
        one_kernel = kernel.contexts, kernel.draws, kernel.obstacle
    else:
        one_kernel = {}, False, f"it is for models of Llama's family, and this is {config.architecture}"
    return Model(config, device, forward, family.recompute_at, *one_kernel)
