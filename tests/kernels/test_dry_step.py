"""kernels.dry_step: shapes of a step without memory."""

from __future__ import annotations

from kernels.dry_step import dry_step


def test_it_has_the_shapes_of_a_step_and_no_memory() -> None:
    step = dry_step(7, 3, 2, 5)
    assert {name: array.shape for name, array in step.arrays().items()} == {
        **dict.fromkeys(("token_ids", "positions", "slots", "sequence_rows"), (7,)),
        **dict.fromkeys(("context_lengths", "sequence_lengths"), (3,)),
        "query_starts": (4,),
        "block_tables": (3, 5),
        "logit_rows": (2,),
    }
    assert all(array.pointer == 0 for array in step.arrays().values())
    assert step.states is None and step.greedy is None


def test_states_are_those_of_its_sequences() -> None:
    states = dry_step(7, 3, 2, 5, has_states=True).states
    assert states is not None and states.slots.shape == states.sources.shape == (3,)
