"""worker.model.forward.one_kernel: which steps run in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.dry_step import dry_step
from kernels.weights.parameters import LayersSupport
from worker.model.forward.one_kernel import OneKernel

MODEL: Any = object()


def one_kernel(support: LayersSupport, obstacle: str | None = None) -> tuple[OneKernel, list[Any]]:
    """It, and what its op is given."""
    calls: list[Any] = []
    ops = SimpleNamespace(
        decode_layers_support=lambda model: support if model is MODEL else None,
        decode_layers=lambda *arguments, **options: calls.append((arguments, options)),
    )
    device: Any = SimpleNamespace(ops=ops, store=SimpleNamespace(vector=lambda values: values))
    return OneKernel(device, MODEL, obstacle), calls


def test_it_runs_steps_of_few_sequences_with_a_token_each_and_short_contexts() -> None:
    kernel, _ = one_kernel(LayersSupport(None, {1: 9, 2: 8, 4: 7}))
    assert kernel.obstacle is None and not kernel.draws
    assert kernel.contexts == {1: 9, 2: 8, 4: 7}
    for count in (1, 2, 4):
        step = dry_step(count, count, count, 8)
        assert kernel.runs(step)
        assert not kernel.runs(replace(step, has_long_context=True))
    assert not kernel.runs(dry_step(3, 3, 3, 8)) and not kernel.runs(dry_step(8, 8, 8, 8))
    assert not kernel.runs(dry_step(2, 1, 1, 8)), "two tokens of a sequence"


@pytest.mark.parametrize(("found", "why"), [(None, "it is for others"), ("it has experts", "it has experts")])
def test_whatever_keeps_the_model_from_it_is_told(found: str | None, why: str) -> None:
    kernel, _ = one_kernel(LayersSupport("it is for others"), found)
    assert kernel.obstacle == why
    assert not kernel.contexts and not kernel.draws and not kernel.runs(dry_step(1, 1, 1, 8))


def test_a_step_gets_the_words_that_the_op_asked_for_and_may_draw_if_it_did() -> None:
    words = np.arange(4, dtype=np.float32)
    kernel, calls = one_kernel(LayersSupport(None, {1: 9}, words))
    assert kernel.draws
    step, caches, logits = dry_step(1, 1, 1, 8), [], np.empty((1, 5), np.float32)
    kernel.forward(step, caches, logits)
    (((model, given), options),) = calls
    assert model is MODEL and given is step
    assert options["words"] is words and options["out_caches"] is caches and options["out"] is logits
