"""What orcd keeps in Redis, and the scripts that write it.

All keys begin with ``orcd:``; ``{J}`` is the job id in braces. ``TTL`` is the job's time to live
(`Settings.job_ttl_s`), started anew by a claim, by every renewal of the lease and by the end. Times are Unix
milliseconds of the Redis clock.

=================== ======= ============================ ======================= ====================================
key                 type    written by                   read by                 time to live
=================== ======= ============================ ======================= ====================================
orcd:{J}:job        hash    submit, claim, append,       claim, clients          TTL
                            reap, cancel, release
orcd:{J}:log        stream  append, cancel, reap         claim, clients          TTL
orcd:{J}:events     channel append, cancel, reap,        clients                 -
                            release, submit, workers
orcd:queued         zset    submit, reap, release        reap, clients           TTL; member job, score next publish
orcd:running        zset    claim, renew                 reap                    TTL; member job, score lease's end
orcd:control        channel cancel                       workers                 -
orcd:workers        zset    workers                      clients, health         60 s; member worker, score last seen
orcd:worker:{NAME}  hash    workers                      clients, health         60 s
=================== ======= ============================ ======================= ====================================

Fields of ``orcd:{J}:job``: ``request`` (JSON, see `orcd.request`), ``state``, ``queue``, ``priority``,
``created_ms``, ``deadline_ms`` (0: none), ``epoch`` (fencing token, higher with every change of owner),
``attempt``, ``owner``, ``model``, ``started_ms`` (first claim), ``first_token_ms``, ``finished_ms``,
``cancel`` (1: wanted), ``published`` (times its message was published again).

An entry of ``orcd:{J}:log`` has the id ``<n>-<k>``: n tokens were emitted so far over all choices, k numbers the
events at the same n. Its one field ``e`` is the event as JSON (see `orcd.events`).

Celery has keys of its own: the queues, ``unacked*``, ``_kombu.*`` and ``celery-task-meta-<task id>``; of the scripts
``take`` and ``store_result`` write those. ``prelude`` is no script but what all others begin with.
Scripts reach a job's keys by its id, so a Redis Cluster is not supported; one Redis with replicas is.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

QUEUED = "orcd:queued"
RUNNING = "orcd:running"
CONTROL = "orcd:control"
WORKERS = "orcd:workers"

STATES = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
TERMINAL_STATES = frozenset(STATES[2:])


def job_key(job_id: str) -> str:
    """The job's record."""
    return f"orcd:{{{job_id}}}:job"


def log_key(job_id: str) -> str:
    """The job's token log."""
    return f"orcd:{{{job_id}}}:log"


def events_channel(job_id: str) -> str:
    """Where the job's events are published as they are logged."""
    return f"orcd:{{{job_id}}}:events"


def worker_key(name: str) -> str:
    """A worker's last heartbeat."""
    return f"orcd:worker:{{{name}}}"


@cache
def script(name: str) -> str:
    """The script ``orcd/store/lua/<name>.lua`` with ``prelude.lua``, what those of jobs have in common, in front."""
    return _text("prelude") + _text(name)


@cache
def celery_script(name: str) -> str:
    """A script that writes Celery's own keys: without the prelude, as it is sent whole with each call."""
    return _text(name)


def _text(name: str) -> str:
    return files("orcd.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
