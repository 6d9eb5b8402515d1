"""Groups of sequences with a common beginning, as steps of an engine that runs ahead have them."""

import numpy as np
import pytest

from kernels.batch import Step
from tests.worker.engine.context_model import check_prefixes
from tests.worker.engine.cuda.late_device import LateModel
from tests.worker.engine.generation import SAMPLINGS, engine, generate
from tests.worker.engine.generation import prompt as prompt_of
from worker.contract import Add, Choice
from worker.engine.cuda import prefix_grouping

pytestmark = pytest.mark.usefixtures("no_wait_is_long")


class Watched(LateModel):
    """Checks the groups of the steps that it runs, and counts those of decode steps and of others."""

    def __init__(self) -> None:
        super().__init__()
        self.num_groups = {"decode": 0, "whole": 0}

    def _compute(self, step: Step, cache: np.ndarray, logits: np.ndarray) -> None:
        if step.prefixes is not None:
            kind = "decode" if step.positions.size == step.context_lengths.size else "whole"
            self.num_groups[kind] += check_prefixes(step, step.prefixes, 4)
        super()._compute(step, cache, logits)


@pytest.fixture(autouse=True)
def short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_grouping, "TILE_KEYS", 4)
    monkeypatch.setattr(prefix_grouping, "LEAST_BYTES", 1)


def sharing() -> list[Add]:
    """Requests that come together, with beginnings that all, some, or none of the others have."""
    common, other = prompt_of(0, 20), prompt_of(1, 13)
    adds = [Add(f"r{number}", (*common, number), SAMPLINGS[number % 2]) for number in range(5)]
    adds += [Add(f"s{number}", (*common[:8], *other, number), SAMPLINGS[number % 2]) for number in range(3)]
    return [
        *adds,
        Add("choices", other, SAMPLINGS[1], (Choice(0), Choice(1))),
        Add("alone", prompt_of(2, 9), SAMPLINGS[0]),
    ]


@pytest.mark.parametrize("options", [{}, {"step_tokens": 9}, {"cache_tokens": 64}, {"max_sequences": 4}])
def test_steps_name_sequences_that_begin_with_the_same_blocks(options: dict[str, int]):
    model = Watched()
    together = generate(sharing(), engine(model, **options))
    assert model.num_groups["decode"] > 3 and model.num_groups["whole"] > 0
    for add in sharing():
        for key, result in generate([add], engine(LateModel())).items():
            assert together[key] == result


def test_where_little_would_be_read_less_each_attends_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix_grouping, "LEAST_BYTES", 100_000)
    model = Watched()
    generate(sharing(), engine(model))
    assert model.num_groups == {"decode": 0, "whole": 0}


def test_no_more_groups_than_the_device_has_room_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix_grouping, "MAX_GROUPS", 1)
    model = Watched()
    generate(sharing(), engine(model))
    assert model.num_groups["decode"] > 0


def test_memory_holds_the_groups_and_then_the_members():
    memory = np.zeros(prefix_grouping.prefix_bytes(5), np.uint8)
    prefixes = prefix_grouping.prefixes_in(memory)
    assert prefixes.groups.shape == (prefix_grouping.MAX_GROUPS, 3) and prefixes.members.shape == (5,)
    prefixes.groups[:], prefixes.members[:] = 1, 2
    assert memory.view(np.int32).tolist() == [1] * prefix_grouping.MAX_GROUPS * 3 + [2] * 5
