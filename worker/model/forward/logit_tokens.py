"""The tokens of a step whose logits are wanted: behind the last layer that keeps anything of all, only they go on.

All tokens of a step give keys and values, or change a state, in each layer that has its own. What comes after these in
the last such layer is for logits alone, and of a prompt these are wanted of the last token only, if this step has it.
"""

from __future__ import annotations

from kernels.batch import AnyArray, LayerCache, Step
from kernels.devices.protocol import AnyAttentionPlan, AnyOps, AnyRotation
from kernels.weights.parameters import Attention
from worker.model.forward.step_activations import StepActivations

MOST_OF_STEP = 2
"""Of more than one token in so many, it saves less to leave the others out than it takes."""


def has_few_logits(step: Step[AnyArray]) -> bool:
    """Whether the other tokens are left out."""
    return MOST_OF_STEP * step.logit_rows.size <= step.token_ids.size


def attend(
    ops: AnyOps,
    acts: StepActivations,
    by: AnyRotation | None,
    attention: Attention[AnyArray],
    step: Step[AnyArray],
    plan: AnyAttentionPlan,
    *,
    has_fewer: bool,
    out_cache: LayerCache[AnyArray],
) -> StepActivations | None:
    """`rope_attention` of a layer; gives what goes on, None if nothing does.

    ``has_fewer``: the keys and values of all tokens are written, and those with logits alone attend and go on.
    """
    if not has_fewer:
        ops.rope_attention(acts.qkv, by, attention, step, plan, out_cache=out_cache, out=acts.attended)
        return acts
    ops.rope_write(acts.qkv, step.slots, by, attention, out_cache=out_cache)
    if not step.logit_rows.size:
        return None
    selected = ops.select_step(step)
    left = acts.select(ops, step.logit_rows, selected.logit_rows)
    queries = ops.select_rows(acts.qkv, step.logit_rows, attention.query_width)
    plan = ops.plan_attention(selected, attention)  # may overlap the op before, which must not be `select_step`
    ops.paged_attention(queries, out_cache, attention, selected, plan, out=left.attended)
    return left


def select_logit_tokens(
    ops: AnyOps, acts: StepActivations, mixed: AnyArray, step: Step[AnyArray]
) -> tuple[StepActivations, AnyArray] | None:
    """What tokens with logits go on with behind a recurrent layer, and their rows of what it gave; None: none do."""
    rows = step.logit_rows
    if not rows.size:
        return None
    return acts.select(ops, rows, ops.select_step(step).logit_rows), ops.select_rows(mixed, rows, mixed.shape[1])
