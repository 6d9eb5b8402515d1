"""worker.model.forward.logit_tokens: a token's logits do not depend on which others go through the last layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.devices.open import open_device
from kernels.dry_step import dry_step
from kernels.reference.decode_step import select_step
from tests.models.files import SMALL
from tests.worker.model.stepping import Stepper
from worker.model.forward.logit_tokens import has_few_logits
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model

LENGTHS = 60, 46, 33, 20, 50


def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


@pytest.fixture(scope="module", params=SMALL)
def model(request: pytest.FixtureRequest) -> Model:
    return load(SMALL[request.param])


def steps(model: Model, wanted: Callable[[int], list[int]]) -> list[dict[int, np.ndarray]]:
    """Logits by token of three steps: prompts that begin, go on or end beside sequences of a token each.

    ``wanted``: the tokens of a step, given its number, whose logits are asked for.
    """
    generator = np.random.default_rng(4)
    prompts = [generator.integers(0, model.config.vocab_size, length).tolist() for length in LENGTHS]
    stepper = Stepper(model, prompts)
    counts = [{0: 57, 1: 20, 2: 30}, {3: 13, 0: 1, 1: 25, 2: 1, 4: 50}, {1: 1, 0: 1, 3: 6, 2: 1}]
    return [
        dict(zip(wanted(number), stepper.step_for(each, wanted(number)), strict=True))
        for number, each in enumerate(counts)
    ]


def test_rows_of_logits_are_those_of_a_step_that_has_all(model: Model) -> None:
    """Nothing of the first step, and of the others in an order that is not that of the tokens."""
    num_tokens = 107, 90, 9
    rows = {0: [], 1: [38, 13, 89, 40, 2, 25, 3], 2: [8, 0, 1]}
    expected = steps(model, lambda number: list(range(num_tokens[number])))
    actual = steps(model, rows.__getitem__)
    for all_logits, logits in zip(expected, actual, strict=True):
        assert not any(np.array_equal(all_logits[0], each) for row, each in all_logits.items() if row)
        for row, each in logits.items():
            np.testing.assert_array_equal(each, all_logits[row])


@pytest.mark.parametrize("name", ["qwen3-q4_1", "gemma4-e-q8_0", "lfm2-q5_1", "qwen35-q4_k_m"])
def test_layers_behind_the_last_keys_and_values_take_only_rows_with_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(SMALL[name])
    sizes: list[int] = []
    norm_swiglu, norm_geglu = model.device.ops.norm_swiglu, model.device.ops.norm_geglu

    def noted(op: Callable[..., None]) -> Callable[..., None]:
        def run(x: np.ndarray, *arguments: Any, **options: Any) -> None:
            sizes.append(x.shape[0])
            op(x, *arguments, **options)

        return run

    monkeypatch.setattr(model.device.ops, "norm_swiglu", noted(norm_swiglu))
    monkeypatch.setattr(model.device.ops, "norm_geglu", noted(norm_geglu))
    stepper = Stepper(model, [list(range(60)), list(range(9))])
    layers = model.config.layers
    last = max(index for index, layer in enumerate(layers) if layer.recurrent or layer.cache_layer == index)
    stepper.step_for({0: 40, 1: 9}, [48, 3])
    assert sizes == [49] * last + [2] * (len(layers) - last)
    sizes.clear()
    stepper.step_for({0: 10}, [])
    assert sizes == [10] * last
    sizes.clear()
    stepper.step_for({0: 10}, list(range(6)))
    assert sizes == [10] * len(layers)


def test_a_token_with_logits_is_a_sequence_of_its_own_whose_keys_are_known() -> None:
    step = dry_step(6, 2, 3, 4)
    values = {
        "token_ids": [5, 6, 7, 8, 9, 10],
        "positions": [10, 11, 12, 40, 41, 42],
        "slots": [26, 27, 28, 72, 73, 74],
        "sequence_rows": [0, 0, 0, 1, 1, 1],
        "sequence_lengths": [13, 99],
        "block_tables": [[1, 2, 3, 4], [7, 6, 5, 4]],
        "logit_rows": [5, 2, 0],
    }
    selected = select_step(replace(step, **{name: np.array(value, np.int32) for name, value in values.items()}))
    assert {name: array.tolist() for name, array in selected.arrays().items()} == {
        "token_ids": [10, 7, 5],
        "positions": [42, 12, 10],
        "slots": [74, 28, 26],
        "sequence_rows": [0, 1, 2],
        "query_starts": [0, 1, 2, 3],
        "context_lengths": [43, 13, 11],
        "sequence_lengths": [99, 13, 13],
        "block_tables": [[7, 6, 5, 4], [1, 2, 3, 4], [1, 2, 3, 4]],
        "logit_rows": [0, 1, 2],
    }


@pytest.mark.parametrize(("num_logits", "leaves_out"), [(0, True), (5, True), (6, False), (10, False)])
def test_tokens_are_left_out_where_they_are_half_of_the_step(num_logits: int, leaves_out: bool) -> None:
    assert has_few_logits(dry_step(10, 10, num_logits, 4)) == leaves_out
