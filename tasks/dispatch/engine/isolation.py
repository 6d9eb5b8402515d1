"""The search for the job that kills the engine: a bisection over the jobs that it was at work on when it died."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

MIN_TOKENS = 4
MIN_S = 0.25
"""How far a job must get past the place where the engine died: so many tokens, and then on for so long. What was known
of that place lacks what the engine had not sent: the steps in flight, and outputs of 10 ms (`worker.service`)."""
MAX_LONE_FAULTS = 2
MAX_LONE_KILLS = 3
"""With so many deaths of the engine a job that was alone in it is guilty: deaths by the engine's own fault, and deaths
by a signal from outside (the kernel's, where memory ran out). With fewer of the latter, alone or not, it is no
suspect."""

Place = Mapping[int, int]
"""How far a job is: how many tokens each of its choices that has not ended has, by the choice's index."""


@dataclass(slots=True)
class _Charge:
    """What is held against a job since it last got past the place where the engine died under it."""

    place: dict[int, int] = field(default_factory=dict)
    past_since: float | None = None
    num_kills: int = 0
    num_lone_faults: int = 0
    num_lone_kills: int = 0

    def add(self, place: Place, *, is_fault: bool, is_lone: bool) -> None:
        """Another death of the engine."""
        for choice, count in place.items():
            self.place[choice] = max(count, self.place.get(choice, 0))
        self.past_since = None
        self.num_kills += not is_fault
        self.num_lone_faults += is_lone and is_fault
        self.num_lone_kills += is_lone and not is_fault

    @property
    def convicts(self) -> bool:
        return self.num_lone_faults >= MAX_LONE_FAULTS or self.num_lone_kills >= MAX_LONE_KILLS

    def is_left_behind(self, place: Place, now: float) -> bool:
        """Whether a job that is so far is clearly past the place."""
        if any(count < self.place.get(choice, 0) + MIN_TOKENS for choice, count in place.items()):
            return False
        if self.past_since is None:
            self.past_since = now
        return now - self.past_since >= MIN_S


class Isolation:
    """Which jobs may be in the engine: all of them, until it dies.

    Those that it was at work on are suspects then. Half of them run, in an engine that has nothing else; all other jobs
    wait. If it dies again, that half are the suspects; if each of them gets past the place where the engine died, or
    ends, the other half are, and need not run as a whole. A job that is left alone, and under which the engine dies
    twice, is guilty; with it, or when nobody is suspected any more, the search is over and all jobs go on together.

    So among N jobs one that kills the engine costs at most ``log2(N) + 2`` deaths, the first one included: the halves
    that die have N/2, N/4, ... 1 jobs, and the last of them dies once more. Of several, each costs as many.

    A death by a signal from outside is blamed on nobody, and what was being done is done again: but the third one under
    the same job, which got no further meanwhile, counts as a fault, and the third one with the job alone convicts it.

    Knows jobs by their ids, and does nothing but to say what may be done.
    """

    def __init__(self) -> None:
        self._charges: dict[str, _Charge] = {}
        self._suspects: list[str] = []
        self._group: list[str] = []
        self._admitted: frozenset[str] = frozenset()
        self.num_rounds = 0
        """Grows when other jobs than before may be in the engine."""

    @property
    def num_suspects(self) -> int:
        """Jobs of which one has killed the engine; 0: none is looked for."""
        return len(self._suspects)

    @property
    def group_size(self) -> int:
        """Suspects that run now and have not got past the place where the engine died."""
        return len(self._group)

    def admits(self, job_id: str) -> bool:
        """Whether the job may be in the engine."""
        return not self._suspects or job_id in self._admitted

    def is_charged(self, job_id: str) -> bool:
        """Whether it matters how far the job gets."""
        return job_id in self._charges

    def died(self, jobs: Mapping[str, Place], in_flight: Collection[str], *, is_fault: bool) -> str | None:
        """The engine died with these jobs in it, at work on those ``in_flight``; returns the job that is guilty of it.

        Where the engine did not say what it was at work on, any of its jobs may be to blame. ``is_fault``: nobody else
        has ended it.
        """
        working = [job_id for job_id in jobs if job_id in in_flight] or list(jobs)
        for job_id in working:
            charge = self._charges.setdefault(job_id, _Charge())
            charge.add(jobs[job_id], is_fault=is_fault, is_lone=len(working) == 1)
        if len(working) == 1 and self._charges[working[0]].convicts:
            self._suspect([])
            return working[0]
        suspects = [job_id for job_id in working if job_id in self._group] or working
        if not is_fault:
            suspects = [job_id for job_id in suspects if self._charges[job_id].num_kills >= MAX_LONE_KILLS]
        if suspects:
            # Who has run for long is the least likely one. That half goes first: to be right costs no death.
            self._suspect(sorted(suspects, key=lambda job_id: -sum(jobs[job_id].values())))
        return None

    def advanced(self, job_id: str, place: Place, now: float) -> None:
        """A charged job is so far at a time of the monotonic clock."""
        if self._charges[job_id].is_left_behind(place, now):
            self._clear(job_id)

    def left(self, job_id: str) -> None:
        """The job has ended, or is somebody else's now."""
        self._admitted -= {job_id}
        self._clear(job_id)

    def _clear(self, job_id: str) -> None:
        self._charges.pop(job_id, None)
        if job_id in self._suspects:
            self._suspects.remove(job_id)
        if job_id in self._group:
            self._group.remove(job_id)
            if not self._group:
                self._suspect(self._suspects)

    def _suspect(self, suspects: list[str]) -> None:
        """One of these is guilty: let half of them run."""
        self._suspects = suspects
        self._group = suspects[: max(1, len(suspects) // 2)]
        self._admitted = frozenset(self._group)
        self.num_rounds += 1
