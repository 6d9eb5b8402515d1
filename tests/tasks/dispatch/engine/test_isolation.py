"""The search for the job that kills the engine, in a world of numbers: no process, no clock but the test's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from random import Random

import pytest

from tasks.dispatch.engine.isolation import MIN_S, MIN_TOKENS, Isolation

TICK_S = 0.01
UNSENT_TOKENS = 3
LENGTH = 200


class World:
    """An engine that draws a token of each job a tick, dies when a killer draws its deadly one, and starts again.

    ``kills`` are the tokens at which jobs kill. What was drawn in the last ticks before a death nobody has heard of.
    """

    def __init__(self, num_jobs: int, kills: Mapping[str, int], *, begun: int = 0, max_running: int = 1000) -> None:
        self.isolation = Isolation()
        self.drawn = dict.fromkeys((f"j{i}" for i in range(num_jobs)), begun)
        self.sent = dict(self.drawn)
        self.kills = kills
        self.max_running = max_running
        self.num_deaths = 0
        self.poisoned: list[str] = []
        self.now = 0.0

    def admitted(self) -> list[str]:
        return [job for job in self.drawn if self.isolation.admits(job)]

    def tick(self) -> None:
        admitted = self.admitted()
        running = admitted[: self.max_running]
        assert running or not self.drawn, "jobs are left, and none of them may run"
        self.now += TICK_S
        for job in running:
            self.drawn[job] += 1
        if any(self.drawn[job] == self.kills.get(job) for job in running):
            self.die(running)
            return
        for job in running:
            self.sent[job] = max(self.sent[job], self.drawn[job] - UNSENT_TOKENS)
            if self.isolation.is_charged(job):
                self.isolation.advanced(job, {0: self.sent[job]}, self.now)
            if self.drawn[job] >= LENGTH:
                self.leave(job)

    def die(self, running: Iterable[str] | None = None, *, is_fault: bool = True) -> None:
        admitted = self.admitted()
        self.num_deaths += 1
        running = admitted[: self.max_running] if running is None else running
        guilty = self.isolation.died({job: {0: self.sent[job]} for job in admitted}, set(running), is_fault=is_fault)
        self.drawn.update(self.sent)
        if guilty is not None:
            self.poisoned.append(guilty)
            self.leave(guilty)

    def leave(self, job: str) -> None:
        del self.drawn[job], self.sent[job]
        self.isolation.left(job)

    def run(self) -> None:
        """Until all that is left are jobs that run to their ends, which they then have."""
        for _ in range(100_000):
            if not self.isolation.num_suspects and not any(map(self.matters, self.drawn)):
                for job in list(self.drawn):
                    self.leave(job)
                return
            self.tick()
        raise AssertionError("it goes on for ever")

    def matters(self, job: str) -> bool:
        return job in self.kills or self.isolation.is_charged(job)


def bound(num_jobs: int) -> int:
    """Deaths that one killer among so many may cost."""
    return math.floor(math.log2(num_jobs)) + 2


@pytest.mark.parametrize("at", [1, 5, 90])
@pytest.mark.parametrize("num_jobs", [1, 2, 3, 5, 32, 64])
def test_one_killer_among_many_is_found_and_only_it(num_jobs: int, at: int) -> None:
    most = 0
    for killer in range(num_jobs):
        world = World(num_jobs, {f"j{killer}": at})
        world.run()
        assert world.poisoned == [f"j{killer}"]
        assert world.isolation.num_suspects == 0
        most = max(most, world.num_deaths)
    assert most <= bound(num_jobs)


@pytest.mark.parametrize("num_jobs", [2, 3, 16, 64])
def test_two_killers_cost_at_most_twice_as_many_deaths_and_nobody_else(num_jobs: int) -> None:
    random = Random(num_jobs)
    for _ in range(50):
        killers = random.sample(range(num_jobs), 2)
        world = World(num_jobs, {f"j{killer}": random.choice([1, 2, 30, 100]) for killer in killers})
        world.run()
        assert sorted(world.poisoned) == sorted(f"j{killer}" for killer in killers)
        assert world.num_deaths <= 2 * bound(num_jobs)


def test_a_killer_that_has_only_begun_is_known_without_another_death_of_those_who_have_run_for_long() -> None:
    world = World(64, {"j0": 1}, begun=20)
    world.drawn["j0"] = world.sent["j0"] = 0
    world.run()
    assert world.poisoned == ["j0"]
    assert world.num_deaths == 3, "with all of them, alone, and alone again"


def test_suspects_run_in_halves_and_all_others_wait() -> None:
    world = World(8, {})
    world.die(["j0", "j1", "j2", "j3"])
    assert world.admitted() == ["j0", "j1"]
    assert (world.isolation.num_suspects, world.isolation.group_size) == (4, 2)
    world.drawn["new"] = world.sent["new"] = 0
    assert not world.isolation.admits("new"), "who comes meanwhile waits too"
    world.die()
    assert world.admitted() == ["j0"]
    world.die()
    assert (world.admitted(), world.poisoned) == (["j0"], []), "once may be chance"
    world.die()
    assert world.poisoned == ["j0"]
    assert len(world.admitted()) == 8, "all that are left go on together"


def test_who_is_known_by_elimination_does_not_run_as_a_whole() -> None:
    world = World(4, {})
    world.die()
    world.leave("j0")
    world.leave("j1")
    assert world.admitted() == ["j2"]
    world.leave("j2")
    assert (world.admitted(), world.isolation.num_suspects) == (["j3"], 1)
    world.leave("j3")
    assert world.isolation.num_suspects == 0


def test_a_suspect_is_cleared_when_it_is_clearly_past_the_place_and_not_by_a_token() -> None:
    isolation = Isolation()
    isolation.died({"a": {0: 50, 1: 10}, "b": {0: 70}}, {"a", "b"}, is_fault=True)
    assert isolation.admits("b") and not isolation.admits("a"), "the one that has run for longer"
    isolation.left("b")
    for now, drawn in [(1.0, {0: 49, 1: 60}), (2.0, {0: 50 + MIN_TOKENS - 1, 1: 60}), (3.0, {0: 99, 1: 10})]:
        isolation.advanced("a", drawn, now)
        isolation.advanced("a", drawn, now + MIN_S)
    past = {0: 50 + MIN_TOKENS, 1: 10 + MIN_TOKENS}
    isolation.advanced("a", past, 10.0)
    assert isolation.num_suspects == 1, "outputs of before the death may have been on their way"
    isolation.advanced("a", past, 10.0 + MIN_S)
    assert isolation.num_suspects == 0
    assert not isolation.is_charged("a")


def test_the_place_is_the_furthest_where_the_engine_died() -> None:
    isolation = Isolation()
    isolation.died({"a": {0: 90}, "b": {0: 50}}, {"a", "b"}, is_fault=True)
    isolation.died({"a": {0: 20}}, {"a"}, is_fault=True)
    for now in (1.0, 2.0):
        isolation.advanced("a", {0: 80}, now)
    assert isolation.is_charged("a")


def test_whoever_was_past_the_place_when_its_group_died_is_suspected_no_more() -> None:
    world = World(8, {})
    world.die()
    assert world.admitted() == ["j0", "j1", "j2", "j3"]
    for now in (1.0, 2.0):
        for job in ("j0", "j1", "j2"):
            world.isolation.advanced(job, {0: 100}, now)
    assert world.isolation.group_size == 1
    assert len(world.admitted()) == 4, "they run on until their group is through"
    world.die()
    assert world.admitted() == ["j3"]
    world.die()
    assert world.poisoned == [], "the last death was the first one with it alone"
    world.die()
    assert world.poisoned == ["j3"]


def test_jobs_that_leave_meanwhile_leave_the_search_going() -> None:
    random = Random(5)
    for _ in range(50):
        killer = f"j{random.randrange(32)}"
        world = World(32, {killer: 20})
        while world.drawn:
            for job in list(world.drawn):
                if job != killer and random.random() < 0.01:
                    world.leave(job)
            world.tick()
        assert world.poisoned == [killer]
        assert world.num_deaths <= bound(32)
    world = World(32, {"j7": 20})
    while world.num_deaths < 3:
        world.tick()
    world.leave("j7")  # cancelled
    world.run()
    assert (world.poisoned, world.num_deaths) == ([], 3)


def test_a_signal_from_outside_blames_nobody() -> None:
    world = World(16, {})
    for _ in range(10):
        world.die(is_fault=False)
        assert len(world.admitted()) == 16, "all go on together"
        for _ in range(60):
            world.tick()
            if not world.drawn:
                return


def test_what_is_killed_from_outside_again_and_again_is_found_like_what_kills_by_itself() -> None:
    """A request for which the kernel's memory runs out."""
    for killer in range(16):
        world = World(16, {})
        while f"j{killer}" in world.drawn:
            world.tick()
            if f"j{killer}" in world.admitted() and world.drawn[f"j{killer}"] >= 10:
                world.die(is_fault=False)
        assert world.poisoned == [f"j{killer}"]
        assert world.num_deaths <= 3 + int(math.log2(16)) + 2


def test_a_lone_job_is_given_up_with_the_third_signal_and_not_before() -> None:
    world = World(1, {})
    for expected in ([], [], ["j0"]):
        world.die(is_fault=False)
        assert world.poisoned == expected


def test_a_lone_job_that_goes_on_between_two_deaths_is_never_given_up() -> None:
    for is_fault in (True, False):
        world = World(1, {})
        for _ in range(4):
            world.die(is_fault=is_fault)
            for _ in range(45):
                world.tick()
        assert (world.poisoned, world.isolation.num_suspects) == ([], 0)


def test_signals_from_outside_during_a_search_have_the_same_group_run_again() -> None:
    world = World(16, {"j9": 20})
    while not world.poisoned:
        before = world.admitted(), world.isolation.num_suspects
        world.die(is_fault=False)
        assert (world.admitted(), world.isolation.num_suspects) == before
        deaths = world.num_deaths
        while world.num_deaths == deaths:
            world.tick()
        if world.num_deaths > 4:
            break
    world.run()
    assert world.poisoned == ["j9"]


def test_jobs_that_only_waited_are_no_suspects() -> None:
    world = World(64, {"j3": 5}, max_running=8)
    world.tick()
    world.die(["j0", "j1", "j2", "j3"])
    assert world.isolation.num_suspects == 4
    world.run()
    assert world.poisoned == ["j3"]
    assert world.num_deaths <= 1 + bound(8)


def test_all_that_it_had_are_suspects_of_an_engine_that_did_not_say_what_it_was_at_work_on() -> None:
    world = World(8, {})
    world.die(running=[])
    assert world.isolation.num_suspects == 8


def test_an_engine_that_dies_idle_blames_nobody() -> None:
    isolation = Isolation()
    assert isolation.died({}, {"gone"}, is_fault=True) is None
    assert isolation.num_suspects == 0


def test_a_search_without_a_killer_ends() -> None:
    world = World(64, {})
    world.tick()
    world.die()
    world.run()
    assert (world.poisoned, world.num_deaths) == ([], 1)
