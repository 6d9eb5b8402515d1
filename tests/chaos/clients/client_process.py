"""A process full of clients. It tells the harness of each job when it begins and when it is over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any

from orcd.async_client import AsyncClient
from orcd.errors import OrcdError
from tests.chaos.clients.async_clients import AsyncClients
from tests.chaos.clients.batch_client import BatchClient
from tests.chaos.clients.cases import Case
from tests.chaos.clients.celery_senders import CelerySenders
from tests.chaos.clients.seen import Seen
from tests.chaos.clients.sync_clients import SyncClients

LONGEST_PAUSE_S = 0.4
"""Between two jobs of one client."""


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """What clients there are, and what they ask for: ``cases`` of some models."""

    redis_url: str
    seed: int
    cases: list[Case]
    num_sync: int = 9
    num_celery: int = 5
    num_batch: int = 1
    num_async: int = 8


@dataclass(frozen=True, slots=True)
class Report:
    """A job of the client ``place`` begins, or is over."""

    place: str
    seen: Seen
    is_over: bool


class _Clients:
    """What both kinds of process have in common."""

    def __init__(self, plan: ClientPlan, reports: Queue[Report | None], stopping: Event) -> None:
        self.plan = plan
        self.stopping = stopping
        self._reports = reports
        self._by_model = {case.model: [each for each in plan.cases if each.model == case.model] for case in plan.cases}

    def chance(self, place: str) -> random.Random:
        return random.Random(f"{self.plan.seed} {place}")

    def choose(self, chance: random.Random, kinds: dict[str, tuple[int, Any]]) -> tuple[str, Any, list[Case]]:
        """A kind of client, its method, and cases of one model in some order."""
        (name, (_, method)) = chance.choices(list(kinds.items()), [weight for weight, _ in kinds.values()])[0]
        cases = self._by_model[chance.choices(list(self._by_model), [3, 1][: len(self._by_model)])[0]]
        return name, method, chance.sample(cases, len(cases))

    def begin(self, place: str, number: int, kind: str, model: str) -> Seen:
        now = time.monotonic()
        seen = Seen(kind, model, f"{place}-{number}", asked_s=now, submitted_s=now)
        self._reports.put(Report(place, seen, is_over=False))
        return seen

    def end(self, place: str, seen: Seen, error: Exception | None) -> None:
        seen.ended_s = time.monotonic()
        match error:
            case None:
                pass
            case TimeoutError():
                seen.blame("lost", str(error) or "no end in time")
            case OrcdError(code=code):
                seen.error = code
                seen.detail = seen.detail or error.message
            case _:
                seen.blame("wrong", f"the client raised {type(error).__name__}: {error}")
        self._reports.put(Report(place, seen, is_over=True))


def run_threads(plan: ClientPlan, reports: Queue[Report | None], stopping: Event) -> None:
    """Clients that block, a thread each, until ``stopping`` is set and each has come back."""
    _become_a_client_process()
    clients = _Clients(plan, reports, stopping)
    threads = []
    for name, number, run in (
        ("sync", plan.num_sync, _run_sync),
        ("celery", plan.num_celery, _run_celery),
        ("batch", plan.num_batch, _run_batch),
    ):
        places = [f"{name}{index}-{plan.seed}" for index in range(number)]
        threads += [threading.Thread(target=run, args=(clients, place), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_event_loop(plan: ClientPlan, reports: Queue[Report | None], stopping: Event) -> None:
    """Clients of one event loop, until ``stopping`` is set and each has come back."""
    _become_a_client_process()
    asyncio.run(_run_async(_Clients(plan, reports, stopping)))


def _become_a_client_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness
    for name in [name for name in os.environ if name.startswith("ORCD_")]:
        del os.environ[name]


def _run_sync(clients: _Clients, place: str) -> None:
    chance = clients.chance(place)
    kinds = SyncClients(clients.plan.redis_url, chance).kinds()
    _repeat(clients, place, chance, lambda: clients.choose(chance, kinds), takes_many=False)


def _run_celery(clients: _Clients, place: str) -> None:
    chance = clients.chance(place)
    kinds = CelerySenders(clients.plan.redis_url, chance).kinds()
    _repeat(clients, place, chance, lambda: clients.choose(chance, kinds), takes_many=True)


def _run_batch(clients: _Clients, place: str) -> None:
    chance = clients.chance(place)
    kinds = {"orcd batch": (1, BatchClient(clients.plan.redis_url, chance).run)}
    _repeat(clients, place, chance, lambda: clients.choose(chance, kinds), takes_many=True)


def _repeat(
    clients: _Clients,
    place: str,
    chance: random.Random,
    choose: Callable[[], tuple[str, Callable[[Any, Seen], None], Sequence[Case]]],
    *,
    takes_many: bool,
) -> None:
    number = 0
    while not clients.stopping.is_set():
        number += 1
        kind, method, cases = choose()
        seen, error = clients.begin(place, number, kind, cases[0].model), None
        try:
            method(cases if takes_many else cases[0], seen)
        except Exception as raised:  # whatever it is, it is what this client saw
            error = raised
        clients.end(place, seen, error)
        clients.stopping.wait(chance.uniform(0, LONGEST_PAUSE_S))


async def _run_async(clients: _Clients) -> None:
    async with AsyncClient(clients.plan.redis_url) as client:
        kinds = AsyncClients(client).kinds()
        places = [f"async{index}-{clients.plan.seed}" for index in range(clients.plan.num_async)]
        await asyncio.gather(*(_repeat_async(clients, place, kinds) for place in places))


async def _repeat_async(clients: _Clients, place: str, kinds: dict[str, tuple[int, Any]]) -> None:
    chance = clients.chance(place)
    number = 0
    while not clients.stopping.is_set():
        number += 1
        kind, method, cases = clients.choose(chance, kinds)
        seen, error = clients.begin(place, number, kind, cases[0].model), None
        try:
            await method(cases[0], seen)
        except Exception as raised:  # whatever it is, it is what this client saw
            error = raised
        clients.end(place, seen, error)
        await asyncio.sleep(chance.uniform(0, LONGEST_PAUSE_S))
