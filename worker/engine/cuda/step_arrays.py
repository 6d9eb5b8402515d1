"""A step's arrays by name, with those that only some steps have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import Array, PrefixGroups, SamplingParams, StateRows, Step, first, pack, view
from kernels.runtime.device_array import DeviceArray
from worker.engine.batch_builder import PromptTokens, build_report_params
from worker.engine.cuda.pinned_ring import UploadRing


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


def send_step(
    step: Step[NDArray[Any]],
    params: SamplingParams[NDArray[Any]],
    reported: list[PromptTokens],
    uploads: UploadRing,
    memory: DeviceArray,
) -> tuple[Step[DeviceArray], SamplingParams[DeviceArray], DeviceArray]:
    """Enqueue that ``memory`` holds a step: what it is there, how its tokens are drawn, and the ``reported`` ids.

    What of the rows of logits after which these come is behind that of the rows to draw from; all without edits.
    """
    behind = build_report_params(reported)
    arrays = arrays_of(step) | {
        "rows": np.concatenate([params.rows, behind.rows]),
        "output_positions": np.concatenate([params.output_positions, behind.output_positions]),
        "prompt_ids": np.array([token_id for prompt in reported for token_id in prompt.token_ids], np.int32),
    }
    num_bytes, offsets = pack(arrays, uploads.take())
    uploads.send(first(memory, num_bytes))
    views = {name: view(memory, offsets[name], array.shape, array.dtype) for name, array in arrays.items()}
    sent_params, prompt_ids = SamplingParams(views.pop("rows"), views.pop("output_positions")), views.pop("prompt_ids")
    return step_of(views, has_short_chunks=step.has_short_chunks), sent_params, prompt_ids
