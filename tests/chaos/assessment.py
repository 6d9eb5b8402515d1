"""What the clients saw, laid beside what was staged: which streams were right, which faults they met, what it cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.clients.seen import Seen
from tests.chaos.faults.fault import Staged

PROBLEMS = ("wrong", "lost", "doubled", "hung", "failed")
TEXT_KINDS = ("stream", "chat", "async stream")
"""Clients that submit and read in one call: they know when they began, and when the first text came."""
CANVASES = ("Celery chain", "Celery chord")
"""Clients whose later messages are sent by workers."""
JUST_BEFORE_S = 0.5
"""A stream whose last token came so shortly after the end of a fault may still have been hit by it."""
MOST_ALIKE = 3
KILL_MARGIN_S = 2.0
"""After a kill every stream goes on within the lease and this time."""


@dataclass(slots=True)
class Row:
    """One fault (or kind of client) in the table."""

    name: str
    num_staged: int = 0
    num_streams: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    worst_recovery_s: float = 0.0

    def cells(self) -> list[str]:
        """Its figures, in the order of the table's columns."""
        figures = [self.num_staged, self.num_streams, *(self.counts[each] for each in (*PROBLEMS, "honest"))]
        return [self.name, *map(str, figures), f"{self.worst_recovery_s:.1f}"]


class Assessment:
    """The end of a run. ``seen`` and ``staged`` are all of it."""

    def __init__(self, seen: Sequence[Seen], staged: Sequence[Staged], lease_s: float) -> None:
        self._seen = seen
        self._staged = staged
        self._bound_s = lease_s + KILL_MARGIN_S
        self._met = [[fault for fault in staged if fault.concerns(each.asked_s, each.ended_s)] for each in seen]
        self._outcomes = [self._outcome(each, met) for each, met in zip(seen, self._met, strict=True)]
        self._recoveries = [list(self._recoveries_of(each, met)) for each, met in zip(seen, self._met, strict=True)]

    @property
    def num_jobs(self) -> int:
        """Jobs that were checked."""
        return sum(seen.num_jobs for seen in self._seen)

    @property
    def num_kills(self) -> int:
        """Processes that got a SIGKILL."""
        return sum(staged.num_kills for staged in self._staged)

    def fault_rows(self, names: Sequence[str]) -> list[Row]:
        """A row for each fault by name, then one for all streams."""
        return [self._fault_row(name) for name in names] + [self._total()]

    def honest_errors(self) -> Counter[str]:
        """What the honest errors were."""
        honest = [seen for seen, outcome in zip(self._seen, self._outcomes, strict=True) if outcome == "honest"]
        return Counter(seen.error or "no result" for seen in honest)

    def client_rows(self) -> list[Row]:
        """A row for each kind of client."""
        rows: dict[str, Row] = {}
        for seen, outcome in zip(self._seen, self._outcomes, strict=True):
            row = rows.setdefault(seen.kind, Row(seen.kind))
            row.num_staged += 1
            row.num_streams += seen.num_jobs
            row.counts[outcome] += 1
        return [rows[kind] for kind in sorted(rows)]

    def failures(self, begin_s: float) -> list[str]:
        """A line for each stream that was not right, and for each recovery after a kill that took too long.

        Of those that say the same only the first few are there.
        """
        lines = []
        for seen, faults, outcome, recoveries in self._streams():
            when = f"{seen.submitted_s - begin_s:.1f} to {seen.ended_s - begin_s:.1f} s"
            met = ", ".join(f"{each.name} at {each.start_s - begin_s:.1f} s" for each in faults) or "no fault"
            if outcome in PROBLEMS:
                detail = " ".join(filter(None, (seen.error, seen.detail, seen.log_problem)))
                lines.append(f"{outcome}: {seen.kind} {seen.job_id} ({seen.model}, {when}): {detail} [{met}]")
            for staged, took_s in recoveries:
                if staged.is_kill and took_s > self._bound_s:
                    lines.append(
                        f"slow: {seen.kind} {seen.job_id} ({seen.model}, {when}): its next token came {took_s:.1f} s "
                        f"after {staged.name} at {staged.start_s - begin_s:.1f} s; {self._bound_s:.1f} s are allowed"
                    )
        return _without_repetitions(lines)

    def _streams(self) -> Iterator[tuple[Seen, list[Staged], str, list[tuple[Staged, float]]]]:
        """Each stream, the faults that it met, what became of it, and how long it took to go on after some of them."""
        return zip(self._seen, self._met, self._outcomes, self._recoveries, strict=True)

    def _outcome(self, seen: Seen, met: Sequence[Staged]) -> str:
        """One of `PROBLEMS`, or that it was right: "right", "ended", "honest".

        "ended" is with an error that its client must expect, "honest" with one that says what Redis lost; "failed" is
        an error that nothing explains.
        """
        if seen.problem:
            is_forgotten = seen.problem == "lost" and seen.kind.startswith("Celery") and self._is_forgotten(seen, met)
            return "honest" if is_forgotten else seen.problem
        if seen.log_problem and not any(seen.job_id in staged.targets for staged in self._staged):
            return "doubled" if "after" in seen.log_problem else "wrong"
        if not seen.error:
            return "right"
        if seen.error in seen.may_fail:
            return "ended"
        is_target = any(seen.job_id in staged.targets and seen.error in staged.target_errors for staged in self._staged)
        is_refused = any(seen.error in staged.errors_of_all for staged in met)
        if (
            is_target
            or is_refused
            or (seen.error in ("INVALID_REQUEST", "InvalidRequest") and self._is_forgotten(seen, met))
        ):
            return "honest"
        is_damaged = seen.error in ("LOG_DAMAGED", "LogDamaged")
        return "honest" if is_damaged and any(staged.forgets for staged in met) else "failed"

    def _is_forgotten(self, seen: Seen, met: Sequence[Staged]) -> bool:
        """Whether Redis has forgotten its submission.

        Nobody knows when a batch submitted which line, or a worker the next message of a canvas.
        """
        latest_s = seen.ended_s if seen.kind in CANVASES else seen.submitted_s
        if seen.kind in TEXT_KINDS:
            latest_s = seen.arrivals[0] if seen.arrivals else seen.ended_s
        is_batch = seen.kind == "orcd batch"
        return any(staged.forgot(seen.asked_s, latest_s) or (is_batch and staged.forgets) for staged in met)

    def _fault_row(self, name: str) -> Row:
        row = Row(name, sum(staged.name == name for staged in self._staged))
        for seen, faults, outcome, recoveries in self._streams():
            if any(staged.name == name for staged in faults):
                row.num_streams += seen.num_jobs
                row.counts[outcome] += 1
            for staged, took_s in recoveries:
                if staged.name == name:
                    row.worst_recovery_s = max(row.worst_recovery_s, took_s)
        return row

    def _total(self) -> Row:
        kills = [took_s for each in self._recoveries for staged, took_s in each if staged.is_kill]
        return Row("all", len(self._staged), self.num_jobs, Counter(self._outcomes), max(kills, default=0.0))

    def _recoveries_of(self, seen: Seen, met: Sequence[Staged]) -> Iterator[tuple[Staged, float]]:
        """For each fault that a stream met: how long after its end the next token came.

        Only where nothing else was staged before that token. A canvas, a batch or a result has no tokens to time.
        """
        if not seen.arrivals:
            return
        times = [seen.submitted_s, *seen.arrivals]
        for staged in met:
            end_s = staged.end_for(seen.model)
            gaps = [(begin, end) for begin, end in pairwise(times) if begin <= end_s + JUST_BEFORE_S and end > end_s]
            if not gaps:
                continue
            begin, end = max(gaps, key=lambda gap: gap[1] - max(gap[0], end_s))
            others = [each for each in self._staged if each is not staged and each.concerns(min(begin, end_s), end)]
            if not others:
                yield staged, end - end_s


def _without_repetitions(lines: Sequence[str]) -> list[str]:
    """The first few of those that differ in numbers only, and how many more there are."""
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(re.sub(r"\(.*?\)|\[.*\]$|\S*\d\S*", "", line), []).append(line)
    found = []
    for group in alike.values():
        found += group[:MOST_ALIKE]
        if len(group) > MOST_ALIKE:
            found.append(f"  and {len(group) - MOST_ALIKE} more like that")
    return found
