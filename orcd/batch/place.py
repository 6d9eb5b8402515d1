"""Where a request stands in the inputs of a batch, and the job id that follows from it."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

DIGEST_BYTES = 6
_JOB_ID = re.compile(rf".+-(?P<place>[\d.]+)(?:r\d+)?-(?P<digest>[0-9a-f]{{{2 * DIGEST_BYTES}}})")


class Place(NamedTuple):
    """The line ``number``, from 1, of the input ``file``, from 0."""

    file: int
    number: int

    def __str__(self) -> str:
        """``12`` in the first input, ``2.12`` in the second."""
        return f"{self.file + 1}.{self.number}" if self.file else str(self.number)

    @classmethod
    def parse(cls, text: str) -> Place:
        """The reverse of ``str``. Raises ValueError."""
        file, dot, number = text.rpartition(".")
        place = cls(int(file) - 1 if dot else 0, int(number))
        if place.file < 0 or place.number < 1:
            raise ValueError(text)
        return place


def digest_of(text: bytes, salt: bytes) -> int:
    """What tells one line from another; ``salt`` stands for what the command says of all lines."""
    return int.from_bytes(hashlib.sha256(salt + text).digest()[:DIGEST_BYTES])


def job_id(batch: str, place: Place, digest: int, num_failures: int) -> str:
    """The id of a line's job: the same one until that job has failed, so that going on runs no job twice."""
    again = f"r{num_failures}" if num_failures else ""
    return f"{batch}-{place}{again}-{digest:0{2 * DIGEST_BYTES}x}"


def place_and_digest(job_id: str) -> tuple[Place, int]:
    """Of a job id that `job_id` made. Raises ValueError for any other one."""
    found = _JOB_ID.fullmatch(job_id)
    if found is None:
        raise ValueError(job_id)
    return Place.parse(found["place"]), int(found["digest"], 16)
