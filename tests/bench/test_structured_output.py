from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.bench.structured_output import Outcome, measure


def test_a_few_schemas_go_through_the_whole_system(shallow_model: Path) -> None:
    outcome = measure(shallow_model, "cpu", 6, seed=5)
    assert outcome.wrong == []
    assert outcome.num_answers == 3 * (6 - outcome.refused.total())
    assert outcome.exit_code == 0
    assert len(outcome.mask_s) > 100


@pytest.mark.parametrize(
    ("refused", "wrong", "code"), [(1, [], 0), (2, [], 1), (0, ["schema 1: ValueError for '{'"], 1)]
)
def test_the_exit_code_says_whether_all_was_right(refused: int, wrong: list[str], code: int) -> None:
    outcome = Outcome(10, Counter({"too complex": refused}), 30, wrong)
    assert outcome.exit_code == code
    assert all(line in outcome.lines() for line in wrong)
    assert f"10 schemas, {refused} refused" in outcome.lines()[0]
