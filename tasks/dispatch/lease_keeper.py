"""The leases of a worker's jobs, renewed whatever else the worker waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis

from orcd.errors import Cancelled
from orcd.store.backoff import retry
from orcd.store.claim import Lease
from orcd.store.job_store import JobStore
from tasks.dispatch.active_job import Termination
from tasks.supervised_thread import OnDeath, SupervisedThread


class LeaseKeeper:
    """A thread that renews leases three times as often as needed, from a job's claim until it is dropped.

    It neither writes logs nor speaks to the engine, so that nothing that blocks there can cost a lease. What it learns
    of a job goes to ``terminate``; ``failed`` is told when Redis does not answer. ``is_ready`` says whether the worker
    takes jobs now.
    """

    def __init__(
        self,
        store: JobStore,
        lease_ms: int,
        is_ready: Callable[[], bool],
        terminate: Callable[[Termination], None],
        failed: Callable[[redis.RedisError], None],
        on_death: OnDeath,
    ) -> None:
        self._store = store
        self._every_s = lease_ms / 3000
        self._is_ready = is_ready
        self._terminate = terminate
        self._failed = failed
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._thread = SupervisedThread("lease keeper", self._run, on_death)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End it; leases that were not given back run out."""
        self._thread.stop()
        self._thread.join(timeout_s)

    def keep(self, job_id: str, lease: Lease) -> None:
        """Renew this lease from now on, instead of an earlier one of the job."""
        with self._lock:
            self._leases[job_id] = lease

    def drop(self, job_id: str, lease: Lease) -> None:
        """Renew this lease no more; one that the job got since is kept."""
        with self._lock:
            if self._leases.get(job_id) == lease:
                del self._leases[job_id]

    def _run(self) -> None:
        stopping = self._thread.stopping
        while not stopping.is_set():  # also at once: from then on others know that the worker serves its queues
            retry(self._renew, stopping, self._failed, longest_s=self._every_s / 4)
            stopping.wait(self._every_s)

    def _renew(self) -> None:
        """One round. Also without jobs: the store notes with it that the worker serves its queues."""
        with self._lock:
            leases = dict(self._leases)
        for job_id, found in self._store.renew(leases, is_ready=self._is_ready()).items():
            if found == "lost":
                self._terminate(Termination(job_id, None, leases[job_id]))
            elif found == "cancelled":
                self._terminate(Termination(job_id, Cancelled("cancelled"), leases[job_id]))
