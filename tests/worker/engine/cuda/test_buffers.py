import numpy as np

from kernels.batch import pack
from kernels.ops.attention_parts.prefix_attention import MAX_GROUPS
from tests.worker.engine.cuda.late_device import LateDevice
from tests.worker.engine.generation import sequence
from worker.engine.batch_builder import build_sampling_params, build_step
from worker.engine.cuda.buffers import StepBuffers, StepLimits
from worker.engine.logits.edit_rows import MAX_BIASES
from worker.engine.sequence import Chunk


def test_the_largest_step_fits_to_the_byte():
    limits = StepLimits(block_tokens=4, step_tokens=24, max_sequences=2, max_sequence_tokens=14, vocab_size=32)
    assert limits.max_blocks == 4
    sequences = [sequence(list(range(12)), [0, 1, 2, 3]), sequence(list(range(12)), [4, 5, 6, 7])]
    step = build_step([Chunk(each, 12, True) for each in sequences], 4)
    params = build_sampling_params(sequences, lambda _sequence: -1)
    arrays = step.arrays()
    arrays |= {"rows": params.rows, "output_positions": params.output_positions}
    arrays["prompt_ids"] = np.zeros(2, np.int32)  # of a step that draws nothing, and whose rows are all of prompts
    arrays |= {"groups": np.zeros((MAX_GROUPS, 3), np.int32), "members": np.zeros(2, np.int32)}
    staging = np.empty(limits.whole_step_bytes, np.uint8)
    num_bytes, _ = pack(arrays, staging)
    assert num_bytes == limits.whole_step_bytes


def test_buffers_are_taken_for_the_largest_step():
    limits = StepLimits(block_tokens=4, step_tokens=24, max_sequences=2, max_sequence_tokens=14, vocab_size=32)
    buffers = StepBuffers.allocate(LateDevice().step_buffers, limits)
    assert buffers.whole.nbytes == limits.whole_step_bytes
    assert buffers.rows.block_tables.shape == (2, 4)
    edits = buffers.rows.sampling.edits
    assert edits.counts.shape == (2, 32), "for each sequence a count of each id"
    assert edits.biases.shape == (2, MAX_BIASES)
    assert buffers.masks.nbytes == 4 * (2 + 516), "for each sequence a number, and a table of masks of 32 ids"
