import pytest

from tests.bench.gateway.batches import measure


@pytest.mark.timeout(300)  # three workers and four gateways start one after the other
def test_a_batch_whose_gateway_and_worker_are_killed_gives_what_orcd_batch_gives() -> None:
    outcomes, problems = measure(num_lines=100)
    assert problems == []
    assert [len(outcome.answers) for outcome in outcomes] == [89, 89, 89]
