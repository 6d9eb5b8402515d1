"""The device memory that steps need besides the model's: all of it taken at start."""

from __future__ import annotations

import msgspec
import numpy as np

from kernels.batch import SAMPLING_ROW, Allocator, packed_bytes
from kernels.decode_rows import DecodeRows, allocate_rows
from kernels.logit_edits import allocate_edits
from kernels.ops.attention_parts.prefix_attention import MAX_GROUPS
from kernels.runtime.device_array import DeviceArray
from worker.engine.cuda.logit_processing import edit_bytes, mask_bytes, report_bytes
from worker.engine.cuda.prefix_grouping import prefix_bytes
from worker.engine.logits.edit_rows import MAX_BIASES


class StepLimits(msgspec.Struct, frozen=True):
    """What the largest step holds."""

    block_tokens: int
    step_tokens: int
    max_sequences: int
    max_sequence_tokens: int
    vocab_size: int
    has_states: bool = False  # whether the model has recurrent layers

    @property
    def max_blocks(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_sequence_tokens // self.block_tokens)

    @property
    def whole_step_bytes(self) -> int:
        """Bytes of all arrays of the largest step and of its sampling parameters."""
        tokens, sequences = self.step_tokens * 4, self.max_sequences * 4
        per_sequence = [sequences + 4, sequences, sequences, sequences, sequences * self.max_blocks]
        sampling = [self.max_sequences * SAMPLING_ROW.itemsize, 2 * sequences]
        states = [sequences] * 2 if self.has_states else []
        prompt_ids = [sequences]  # of which log probabilities are reported, for each a row of logits
        prefixes = [MAX_GROUPS * 12, sequences]
        return packed_bytes([tokens] * 4 + per_sequence + sampling + states + prompt_ids + prefixes)


class StepBuffers(msgspec.Struct, frozen=True, eq=False):
    """Where steps are on the device."""

    rows: DecodeRows[DeviceArray]
    whole: DeviceArray  # bytes: the arrays of a step that is sent whole
    resets: DeviceArray  # bytes: what rows of edits begin with, see `EditSender`
    masks: DeviceArray  # bytes: masks of token ids, see `LogitMasker`
    reports: DeviceArray  # bytes: log probabilities, see `LogprobReporter`
    prefixes: DeviceArray  # bytes: which sequences attend together, see `PrefixGrouping`

    @classmethod
    def allocate(cls, memory: Allocator[DeviceArray], limits: StepLimits) -> StepBuffers:
        """Take them from ``memory``, the device's for step buffers."""
        edits = allocate_edits(memory, limits.max_sequences, limits.vocab_size, MAX_BIASES)
        return cls(
            rows=allocate_rows(memory, limits.max_sequences, limits.max_blocks, edits, has_states=limits.has_states),
            whole=memory.allocate((limits.whole_step_bytes,), np.uint8),
            resets=memory.allocate((edit_bytes(limits.max_sequences, limits.vocab_size),), np.uint8),
            masks=memory.allocate((mask_bytes(limits.max_sequences, limits.vocab_size),), np.uint8),
            reports=memory.allocate((report_bytes(limits.max_sequences),), np.uint8),
            prefixes=memory.allocate((prefix_bytes(limits.max_sequences),), np.uint8),
        )
