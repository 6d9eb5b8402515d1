import numpy as np
import pytest
from msgspec.structs import replace

from kernels.batch import PrefixGroups, StateRows
from tests.worker.engine.generation import sequence
from worker.engine.batch_builder import build_step
from worker.engine.cuda.step_arrays import arrays_of, step_of
from worker.engine.sequence import Chunk

STATES = StateRows(np.array([3], np.int32), np.array([-1], np.int32))
PREFIXES = PrefixGroups(np.array([[0, 2, 64]], np.int32), np.array([1, 0], np.int32))


@pytest.mark.parametrize("states", [None, STATES])
@pytest.mark.parametrize("prefixes", [None, PREFIXES])
def test_a_step_is_what_its_arrays_say(states: StateRows | None, prefixes: PrefixGroups | None):
    step = build_step([Chunk(sequence([1, 2, 3], [0]), 3, True)], 4)
    arrays = arrays_of(replace(step, states=states, prefixes=prefixes))
    names = set(arrays)
    again = step_of(arrays)
    assert set(arrays) == names
    assert again.token_ids is step.token_ids and again.block_tables is step.block_tables
    assert again.states == states if states is None else again.states.slots is states.slots
    assert again.prefixes == prefixes if prefixes is None else again.prefixes.members is prefixes.members
