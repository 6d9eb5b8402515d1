"""``python -m tests.chaos``: stage faults under load for some minutes, and print what came of it.

    python -m tests.chaos [--minutes 10] [--seed 1] [--only "Redis SIGKILL and restart"]... [--keep FOLDER]
    python -m tests.chaos --short

Half of the time workers are never started anew, and nobody ends one; in the other half those that the harness ends are
replaced, as an orchestrator would, and nothing else. ``--short`` is a minute of that second half. Exit code 1 if a
stream was wrong, lost, doubled or hung, a worker exited by itself, or a stream took longer than the lease and two
seconds to go on after a kill.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orcd.errors import OrcdError
from tests.chaos.assessment import PROBLEMS, Assessment
from tests.chaos.faults.catalogue import FAULTS, SHORT
from tests.chaos.suite import LEASE_S, Phase, Run, Suite
from tests.chaos.table import table

SHORT_S = 55.0
FEW_CASES, MANY_CASES = 8, 18
MOST_LINES = 60
COLUMNS = ("fault", "staged", "streams", *PROBLEMS, "honest errors", "worst recovery, s")
CLIENT_COLUMNS = ("client", "runs", "jobs", *PROBLEMS, "honest errors")


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What is run; exits with 2 for wrong usage."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=description)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="about a minute, for every change")
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--only", action="append", choices=names, metavar="FAULT", help=f"one of: {', '.join(names)}")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the workers' logs there")
    return parser.parse_args(argv)


def phases(arguments: argparse.Namespace) -> list[Phase]:
    """The parts of the run."""
    if arguments.short:
        return [Phase(SHORT, SHORT_S, replaces_workers=True, in_order=True)]
    faults = [fault for fault in FAULTS if not arguments.only or fault.name in arguments.only]
    seconds = 60 * arguments.minutes
    if all(fault.ends_workers for fault in faults):
        return [Phase(faults, seconds, replaces_workers=True)]
    return [Phase(faults, seconds / 2, replaces_workers=False), Phase(faults, seconds / 2, replaces_workers=True)]


def report(run: Run, arguments: argparse.Namespace, command: str) -> int:
    """Print what came of a run; returns the exit code."""
    assessment = Assessment(run.seen, run.staged, LEASE_S)
    names = [fault.name for fault in FAULTS if any(staged.name == fault.name for staged in run.staged)]
    print(f"{command}, seed {arguments.seed}, lease {LEASE_S:.0f} s\n")
    print(table(COLUMNS, [row.cells() for row in assessment.fault_rows(names)]))
    print(f"\n{table(CLIENT_COLUMNS, [row.cells()[:-1] for row in assessment.client_rows()])}")
    honest = ", ".join(f"{code} {count}" for code, count in assessment.honest_errors().most_common())
    print(f"\nhonest errors: {honest or 'none'}")
    for name, why in run.left_out.items():
        print(f"\nnot staged: {name}: {why}")
    failures = run.problems + assessment.failures(run.begin_s)
    exits = sum("exited with" in problem for problem in run.problems)
    print(
        f"\n{assessment.num_jobs} jobs, {len(run.staged)} faults, {assessment.num_kills} kills, "
        f"{exits} workers that exited by themselves, {len(failures)} failures"
    )
    for line in failures[:MOST_LINES]:
        print(line)
    if len(failures) > MOST_LINES:
        print(f"and {len(failures) - MOST_LINES} more")
    return 1 if failures else 0


def main(argv: Sequence[str]) -> int:
    arguments = read_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that everything is ended in order
    with tempfile.TemporaryDirectory(prefix="orcd-chaos-") as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        num_cases = FEW_CASES if arguments.short else MANY_CASES
        try:
            run = Suite(phases(arguments), arguments.seed, folder, num_cases).run()
        except (OrcdError, TimeoutError) as error:  # before the first fault
            print(error)
            return 1
    return report(run, arguments, " ".join(["python -m tests.chaos", *argv]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
