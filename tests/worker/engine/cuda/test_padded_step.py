import numpy as np
import pytest
from msgspec.structs import replace

from kernels.batch import GREEDY_ROW, SAMPLING_ROW, LogitEdits, PrefixGroups, StateRows
from tests.worker.engine.generation import sequence
from worker.engine.batch_builder import build_sampling_params, build_step
from worker.engine.cache.prefix_cache import pack_ids
from worker.engine.cuda.buffers import StepLimits
from worker.engine.cuda.padded_step import PaddedStep, StepSize, size_for, size_for_chunk
from worker.engine.sequence import Chunk

LIMITS = StepLimits(block_tokens=4, step_tokens=8192, max_sequences=200, max_sequence_tokens=4000, vocab_size=32)
EDITS = LogitEdits(np.zeros((1, 32), np.uint16), np.zeros((1, 1), np.int64))


def step_of(*lengths: int):
    """The prompts of so many tokens, each a sequence of which all is computed."""
    sequences = [sequence(list(range(length)), list(range(-(-length // 4)))) for length in lengths]
    step = build_step([Chunk(each, each.num_pending, True) for each in sequences], LIMITS.block_tokens)
    return step, build_sampling_params(sequences, lambda _sequence: -1)


@pytest.mark.parametrize(
    ("lengths", "size"),
    [
        ([1], StepSize(16, 1, 64)),
        ([16], StepSize(16, 1, 64)),
        ([17], StepSize(32, 1, 64)),
        ([130], StepSize(160, 1, 64, has_short_chunks=False)),
        ([257], StepSize(320, 1, 256, has_short_chunks=False)),
        ([512], StepSize(512, 1, 256, has_short_chunks=False)),
        ([513], StepSize(640, 1, 256, has_short_chunks=False)),
        ([2048], StepSize(2048, 1, 1000, has_short_chunks=False)),
        ([5, 6], StepSize(16, 4, 64)),
        ([1] * 16 + [4], StepSize(80, 64, 64)),
        ([1] * 129, StepSize(224, 200, 64)),
        ([2049], StepSize(2304, 1, 1000, has_short_chunks=False)),
        ([4097], None),
    ],
)
def test_steps_are_padded_to_few_sizes_with_more_tokens_than_sequences(lengths: list[int], size: StepSize | None):
    step, _ = step_of(*lengths)
    assert size_for(step, LIMITS) == size
    if size is not None:
        assert size.num_tokens > size.num_sequences


def test_every_size_fits_the_buffer_of_the_largest_step():
    for step_tokens, max_sequences in ((16, 2), (512, 64), (2048, 200), (8192, 256)):
        limits = StepLimits(16, step_tokens, max_sequences, 32768, vocab_size=32, has_states=True)
        whole = np.empty(limits.whole_step_bytes, np.uint8)
        for num_sequences in {1, max_sequences // 2, max_sequences - 1}:
            for num_tokens in {num_sequences + 1, step_tokens}:
                step, _ = step_of(*[1] * (num_sequences - 1), num_tokens - num_sequences + 1)
                size = size_for(step, limits)
                if size is not None:
                    assert PaddedStep(size, whole, EDITS, has_states=True).num_bytes <= whole.nbytes


def test_no_step_is_padded_beyond_what_steps_may_hold():
    limits = StepLimits(block_tokens=4, step_tokens=20, max_sequences=8, max_sequence_tokens=64, vocab_size=32)
    assert size_for(step_of(18)[0], limits) is None
    assert size_for(step_of(3, 3)[0], limits) == StepSize(16, 4, 16)


def test_what_is_written_is_the_step_and_padding_that_is_nobodys():
    step, params = step_of(5, 3)
    size = StepSize(16, 4, 8)
    whole = np.full(4096, 0xEE, np.uint8)
    padded = PaddedStep(size, whole, EDITS)
    padded.write(*step_of(16), whole)  # no row of which is left
    padded.write(step, params, whole)
    written = padded.step
    for name in ("token_ids", "positions", "slots", "sequence_rows"):
        np.testing.assert_array_equal(getattr(written, name)[:8], getattr(step, name))
    assert written.positions[8:].tolist() == written.slots[8:].tolist() == [-1] * 8
    assert written.token_ids[8:].tolist() == written.sequence_rows[8:].tolist() == [0] * 8
    assert written.query_starts.tolist() == [0, 5, 8, 8, 8]
    assert written.context_lengths.tolist() == written.sequence_lengths.tolist() == [5, 3, 0, 0]
    assert written.logit_rows.tolist() == [4, 7, 0, 0]
    np.testing.assert_array_equal(written.block_tables[:2, :2], step.block_tables)
    np.testing.assert_array_equal(padded.params.rows[:2], params.rows)
    assert padded.params.rows[2:].tobytes() == GREEDY_ROW * 2
    assert padded.params.output_positions.tolist() == [0, 0, 0, 0]
    assert padded.params.edits is EDITS
    assert padded.params.rows.dtype == SAMPLING_ROW


@pytest.mark.parametrize("num_packed", [0, 6, 11])
@pytest.mark.parametrize(("num_computed", "num_tokens"), [(0, 11), (0, 8), (3, 5), (4, 7), (9, 2), (10, 1)])
def test_a_chunk_is_written_as_the_step_of_it_is(num_computed: int, num_tokens: int, num_packed: int):
    each = sequence(list(range(10, 21)), [5, 2, 7], num_prompt=9, temperature=0.5, presence_penalty=1.0, seed=3)
    each.packed_ids, each.num_computed = pack_ids(each.token_ids[:num_packed]), num_computed
    each.state_slot, each.state_source = 6, 4
    chunk = Chunk(each, num_tokens, num_computed + num_tokens == 11)
    step = build_step([chunk], LIMITS.block_tokens)
    params = build_sampling_params([each] if chunk.draws else [], lambda _sequence: 2)
    assert size_for_chunk(chunk, LIMITS) == size_for(step, LIMITS)
    written = []
    for by_chunk in (False, True):
        whole = np.zeros(4096, np.uint8)
        padded = PaddedStep(StepSize(16, 1, 8), whole, EDITS, has_states=True)
        whole[:] = 0xEE
        if by_chunk:
            padded.write_chunk(chunk, lambda _sequence: 2, LIMITS.block_tokens, whole)
        else:
            padded.write(step, params, whole)
        written.append(whole.tobytes())
    assert written[0] == written[1]


def test_states_are_written_with_none_for_padding():
    step, params = step_of(5, 3)
    step = replace(step, states=StateRows(np.array([7, 2], np.int32), np.array([-1, 4], np.int32)))
    whole = np.full(4096, 0xEE, np.uint8)
    padded = PaddedStep(StepSize(16, 4, 8), whole, EDITS, has_states=True)
    padded.write(step, params, whole)
    assert padded.step.states is not None
    assert padded.step.states.slots.tolist() == [7, 2, -1, -1]
    assert padded.step.states.sources.tolist() == [-1, 4, -1, -1]


def test_prefix_groups_are_written_where_a_step_has_some():
    step, params = step_of(1, 1, 1, 30)
    groups, members = np.array([[0, 2, 64]], np.int32), np.array([2, 0], np.int32)
    step = replace(step, prefixes=PrefixGroups(groups, members))
    size = size_for(step, LIMITS)
    assert size == StepSize(48, 4, 64, shares=True)
    whole = np.full(16384, 0xEE, np.uint8)
    padded = PaddedStep(size, whole, EDITS)
    padded.write(step, params, whole)
    prefixes = padded.step.prefixes
    assert prefixes.groups[0].tolist() == [0, 2, 64] and not prefixes.groups[1:].any()
    assert prefixes.members.tolist() == [2, 0, 0, 0]
