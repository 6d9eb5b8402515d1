"""On a GPU: a beginning that is read once for several sequences changes nothing of what any of them says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.batch import PrefixGroups
from tests.worker.engine.cuda.gpu_engine import MODELS, OF_THE_KIT, engine
from tests.worker.engine.cuda.test_runner_gpu import assert_same
from tests.worker.engine.cuda.test_runner_gpu import model as model  # the fixture
from tests.worker.engine.test_equivalence import generate
from worker.contract import Add, Choice, Sampling
from worker.engine.cuda.prefix_grouping import PrefixGrouping

WITHOUT_KIT = "needs the conformance kit"
KIT_MODELS = [
    pytest.param(name, marks=pytest.mark.skipif(name not in MODELS, reason=WITHOUT_KIT)) for name in OF_THE_KIT
]

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("model", ["haiku", *KIT_MODELS], indirect=True)]


@pytest.fixture(autouse=True)
def num_groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Groups of each time that they are looked for, where any saving is worth it."""
    monkeypatch.setattr("worker.engine.cuda.prefix_grouping.LEAST_BYTES", 1)
    found: list[int] = []
    groups = PrefixGrouping._groups

    def counted(self: PrefixGrouping, *arguments: Any) -> PrefixGroups | None:
        prefixes = groups(self, *arguments)
        found.append(0 if prefixes is None else len(prefixes.groups))
        return prefixes

    monkeypatch.setattr(PrefixGrouping, "_groups", counted)
    return found


def sharing(model: Any) -> list[Add]:
    """Two beginnings of which one begins with the other, a request with several choices, and one with nothing shared.

    They come together and end one after the other.
    """
    generator = np.random.default_rng(6)
    longest = min(model.config.context_length - 60, 400)
    common, other, last = (generator.integers(0, model.config.vocab_size, longest).tolist() for _ in range(3))
    adds = []
    for number in range(16):
        start = common if number % 3 else [*common[: longest // 2], *other[: longest // 3]]
        sampling = Sampling(max_tokens=6 + 2 * number, temperature=0.8 * (number % 2), seed=number)
        adds.append(Add(f"r{number}", (*start, number, 1), sampling))
    adds.append(Add("several", tuple(other), Sampling(max_tokens=20, seed=3), (Choice(0), Choice(1), Choice(2))))
    return [*adds, Add("alone", tuple(last), Sampling(max_tokens=20, temperature=0.0))]


def test_together_equals_alone_in_graphs_and_kernel_by_kernel(model: Any, num_groups: list[int]):
    alone = engine(model, prefix_cache=False, capture=False, max_sequences=3)
    expected: dict[tuple[str, int], tuple[int, ...]] = {}
    for add in sharing(model):
        expected |= generate([add], alone)
    num_groups.clear()
    for options in ({}, {"capture": False}, {"step_tokens": 40}, {"max_sequences": 7}):
        machine = engine(model, **options)
        for _ in range(2):
            assert_same(generate(sharing(model), machine), expected)
        assert sum(num_groups) > 10, f"{options}: no groups"
        num_groups.clear()
