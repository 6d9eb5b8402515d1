"""worker.model.forward.logit_tokens on a GPU: what the last layer leaves out changes no bit of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from tests.worker.engine.cuda.gpu_engine import MODELS, engine, open_planned, traffic
from worker.contract import Add
from worker.engine.engine import Engine

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_planned(request.param, tmp_path_factory.mktemp("model")) as planned:
        yield planned


def outputs_of(adds: list[Add], machine: Engine) -> dict[str, tuple[list[int], list[bytes]]]:
    """Ids, and all log probabilities, of each request; more of them come while the first are decoded."""
    told: dict[str, tuple[list[int], list[bytes]]] = {add.request_id: ([], []) for add in adds}
    waiting = list(adds)
    while machine.has_work or waiting:
        for add in waiting[:3]:
            machine.add(add)
        del waiting[:3]
        for output in machine.step():
            assert output.finish_reason != "error", output.error_message
            ids, logprobs = told[output.request_id]
            ids += output.ids
            logprobs += filter(None, (output.prompt_logprobs, output.logprobs))
    return told


@pytest.mark.parametrize(("capture", "step_tokens"), [(False, 48), (True, 48), (True, 256)])
def test_answers_are_those_of_steps_whose_tokens_all_go_through_the_last_layer(
    model: Any, monkeypatch: pytest.MonkeyPatch, capture: bool, step_tokens: int
) -> None:
    """Prompts that begin, go on and end, some of them reported, beside sequences of a token each; twice for graphs."""
    adds = [
        Add(add.request_id, add.prompt_ids, replace(add.sampling, logprobs=2, prompt_logprobs=asked))
        for add, asked in zip(traffic(model), [None, None, None, 1] * 4, strict=False)
    ]
    options = {"capture": capture, "step_tokens": step_tokens, "prefix_cache": False}
    machine = engine(model, **options)
    with_few, again = outputs_of(adds, machine), outputs_of(adds, machine)
    assert with_few == again
    monkeypatch.setattr("worker.model.forward.logit_tokens.MOST_OF_STEP", 1 << 30)
    assert outputs_of(adds, engine(model, **options)) == with_few
