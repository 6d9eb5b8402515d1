from __future__ import annotations

from tests.chaos.clients.client_pool import ClientPool
from tests.chaos.clients.client_process import ClientPlan
from tests.conftest import wait_until

NOBODY = ClientPlan("redis://127.0.0.1:1/0", 1, [], num_sync=0, num_celery=0, num_batch=0, num_async=0)
"""Both processes end at once."""


def test_a_process_of_clients_that_has_ended_by_itself_is_a_problem_of_the_run() -> None:
    """A run of an hour was called clean, though all clients on threads had died in its first minute."""
    with ClientPool(NOBODY) as pool:
        wait_until(lambda: len(pool.check()) == 2)
        assert pool.check() == [
            "the clients on threads ended with 0 before they were told to",
            "the clients on an event loop ended with 0 before they were told to",
        ]


def test_a_process_of_clients_that_was_told_to_end_is_none() -> None:
    with ClientPool(NOBODY) as pool:
        pool.stop(30.0, lambda _: True)
        assert pool.check() == []
