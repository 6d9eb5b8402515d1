"""Cancelling the jobs of a batch whose run has been stopped."""

from __future__ import annotations

from pathlib import Path

from orcd.batch.journal import Journal
from orcd.batch.line_index import LineIndex
from orcd.batch.place import job_id
from orcd.batch.results.result_file import ResultFile
from orcd.client import Client
from orcd.errors import InvalidRequest, LogDamaged


def cancel_batch(client: Client, output: Path) -> int:
    """Cancel what is in flight for an OUTPUT, and return how many jobs that was.

    The next run of the batch goes on with new jobs. Raises `InvalidRequest` if a run is going on or nothing is known of
    the OUTPUT, `RedisUnavailable`.
    """
    command = Journal.command(output)
    file = ResultFile(output)
    journal = Journal(Journal.path_for(output))
    try:
        index = LineIndex(command.num_lines)
        for place, digest in file.read(command.options.result_format(set(command.formats))):
            index.finish(place, digest)
        journal.read(index)
        journal.open(command, index.failures())
        num_cancelled = 0
        for place, digest in journal.in_flight.items():
            state = _cancel(client, job_id(journal.name, place, digest, index.num_failures(place)))
            if state in ("cancelled", "running"):
                journal.fail(place)
                num_cancelled += 1
        return num_cancelled
    finally:
        journal.close()
        file.close()


def _cancel(client: Client, job_id: str) -> str:
    """The job's state after that; one that Redis does not know any more counts as cancelled."""
    try:
        return client.cancel(job_id)
    except (InvalidRequest, LogDamaged):
        return "cancelled"
