"""Log probabilities of prompts do not depend on what happens around them: on real models, through the real ops.

Apart from the rest of `tests.worker.engine.test_equivalence`, as files of tests are what runs at the same time.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from tests.worker.engine.test_equivalence import (
    NAMES,
    WITH_REFERENCE,
    engine,
    load_by,
    load_with_reference,
    traffic,
)
from tests.worker.logprob_records import TokenLogprobs, read
from worker.commands.logits import compute_logits
from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.model.registry import Model

MOST_OFF = 0.01  # of a logit of llama.cpp's, which has some functions in tables of float16


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_by(request.param, shallow_model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=WITH_REFERENCE)
def with_reference(request: pytest.FixtureRequest) -> tuple[Model, dict[str, NDArray[Any]]]:
    return load_with_reference(request.param)


def prompt_logprobs(adds: list[Add], machine: Engine) -> dict[str, list[TokenLogprobs]]:
    """Of the prompts of ``adds``."""
    told: dict[str, list[TokenLogprobs]] = {}
    num_tops = {add.request_id: add.sampling.prompt_logprobs or 0 for add in adds}
    for add in adds:
        machine.add(add)
    while machine.has_work:
        for output in machine.step():
            if output.prompt_logprobs is not None:
                told[output.request_id] = read(output.prompt_logprobs, num_tops[output.request_id])
    return told


def outputs_of(adds: list[Add], machine: Engine) -> dict[str, tuple[list[int], list[bytes]]]:
    """Ids, and all log probabilities, of each request."""
    told: dict[str, tuple[list[int], list[bytes]]] = {add.request_id: ([], []) for add in adds}
    for add in adds:
        machine.add(add)
    while machine.has_work:
        for output in machine.step():
            ids, logprobs = told[output.request_id]
            ids += output.ids
            logprobs += filter(None, (output.prompt_logprobs, output.logprobs))
    return told


@pytest.fixture(scope="module")
def logprobs_by_model(model: Model) -> dict[str, NDArray[np.float64]]:
    """Of every other request of the traffic, what its logits make each token after each position, [len, vocab]."""
    adds = traffic(model)[1::2]
    logits = {add.request_id: compute_logits(model, list(add.prompt_ids)).astype(np.float64) for add in adds}
    return {name: each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for name, each in logits.items()}


@pytest.mark.parametrize("options", [{}, {"step_tokens": 11}, {"num_blocks": 16}], ids=["batched", "cut", "preempted"])
def test_log_probabilities_of_a_prompt_are_those_of_the_models_logits(
    model: Model, logprobs_by_model: dict[str, NDArray[np.float64]], options: dict
):
    asking = Sampling(max_tokens=12 if "num_blocks" in options else 3, prompt_logprobs=5)
    adds = [
        Add(add.request_id, add.prompt_ids, asking) for add in traffic(model) if add.request_id in logprobs_by_model
    ]
    machine = engine(model, **options)
    once, again = prompt_logprobs(adds, machine), prompt_logprobs(adds, machine)
    assert once == again, "what the prefix cache holds makes no difference"
    assert (machine.stats(memory_bytes=0).preemptions > 0) == ("num_blocks" in options)
    for add in adds:
        told, expected = once[add.request_id], logprobs_by_model[add.request_id][:-1]
        own = np.take_along_axis(expected, np.array(add.prompt_ids[1:])[:, None], axis=1)
        named = np.take_along_axis(expected, np.array([each.top_ids for each in told]), axis=1)
        top = np.array([each.top_logprobs for each in told])
        is_near = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
        is_near([[each.logprob] for each in told], own)
        is_near(top, np.sort(expected, axis=1)[:, :-6:-1])
        is_near(top, named)


def test_log_probabilities_of_a_prompt_are_those_of_the_reference(with_reference: tuple[Model, dict]):
    model, reference = with_reference
    names = [key.removesuffix("_ids") for key in reference if key.startswith("p") and key.endswith("_ids")]
    asking = Sampling(max_tokens=1, prompt_logprobs=0)
    adds = [Add(each, tuple(reference[f"{each}_ids"].tolist()), asking) for each in names]
    told = prompt_logprobs(adds, engine(model))
    num_compared = 0
    for add in adds:
        for position, logits in zip(
            reference[f"{add.request_id}_positions"], reference[f"{add.request_id}_logits"], strict=True
        ):
            if position + 1 < len(add.prompt_ids):
                row = logits.astype(np.float64)
                expected = row[add.prompt_ids[position + 1]] - np.log(np.exp(row).sum())
                assert told[add.request_id][position].logprob == pytest.approx(expected, abs=2 * MOST_OFF)
                num_compared += 1
    assert num_compared


def test_prompts_that_are_reported_beside_others_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Rows to draw from, of prompts that end in the middle of a step and of single tokens, beside rows to report of.

    With logits of few tokens of a step most of them do not go through the last layer; without, all do.
    """
    adds = [
        Add(add.request_id, add.prompt_ids, replace(add.sampling, max_tokens=4, logprobs=2, prompt_logprobs=asked))
        for add, asked in zip(traffic(model), [None, None, 1] * 3, strict=False)
    ]
    with_few = outputs_of(adds, engine(model))
    monkeypatch.setattr("worker.model.forward.logit_tokens.MOST_OF_STEP", 1 << 30)
    assert outputs_of(adds, engine(model)) == with_few
