"""A step's arrays by name, with those that only some steps have."""

from __future__ import annotations

from kernels.batch import Array, PrefixGroups, StateRows, Step


def arrays_of(step: Step[Array]) -> dict[str, Array]:
    """All arrays of ``step``."""
    arrays = step.arrays()
    if step.states is not None:
        arrays |= {"state_slots": step.states.slots, "state_sources": step.states.sources}
    if step.prefixes is not None:
        arrays |= {"groups": step.prefixes.groups, "members": step.prefixes.members}
    return arrays


def step_of(arrays: dict[str, Array], *, has_short_chunks: bool = True) -> Step[Array]:
    """The step that has these."""
    arrays = dict(arrays)
    states = StateRows(arrays.pop("state_slots"), arrays.pop("state_sources")) if "state_slots" in arrays else None
    prefixes = PrefixGroups(arrays.pop("groups"), arrays.pop("members")) if "groups" in arrays else None
    return Step(
        **arrays,
        states=states,
        prefixes=prefixes,
        has_short_chunks=has_short_chunks,
        has_long_context=False,
        greedy=None,
    )
