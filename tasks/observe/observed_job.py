"""What observers want to know of a job; `tasks.dispatch.active_job.ActiveJob` has it."""

from __future__ import annotations

from typing import Protocol

from orcd.result import Result
from orcd.store.claim import Claim
from worker import contract


class ObservedJob(Protocol):
    """A claimed job: ids, lengths, hashes and times, and a result whose texts must not be shown."""

    @property
    def job_id(self) -> str:
        """The job's id."""

    @property
    def claim(self) -> Claim:
        """How it was taken over."""

    @property
    def num_tokens_in(self) -> int:
        """Length of the prompt."""

    @property
    def num_tokens_out(self) -> int:
        """Tokens generated so far, over all choices."""

    @property
    def first_token_ms(self) -> int | None:
        """When the first token came, by the Redis clock in Unix milliseconds."""

    def now_ms(self) -> int:
        """The time on the Redis clock, as far as it was known at the claim."""

    @property
    def usage(self) -> contract.Usage:
        """What its ended answers cost the engine here."""

    @property
    def text_sha256(self) -> str:
        """Hash of all choices' texts; empty until the job has succeeded."""

    @property
    def result(self) -> Result:
        """What the job has come to so far."""
