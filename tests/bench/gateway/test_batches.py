from pathlib import Path

import pytest

from tests.bench.gateway import batches


@pytest.mark.timeout(300)  # three workers and four gateways start one after the other
def test_a_batch_whose_gateway_and_worker_are_killed_gives_what_orcd_batch_gives(
    monkeypatch: pytest.MonkeyPatch, shallow_chat_model: Path
) -> None:
    monkeypatch.setattr(batches, "DEMO_MODEL", shallow_chat_model)
    outcomes, problems = batches.measure(num_lines=100)
    assert problems == []
    assert [len(outcome.answers) for outcome in outcomes] == [89, 89, 89]
