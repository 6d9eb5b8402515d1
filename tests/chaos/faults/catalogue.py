"""All faults, in the order of the table that a run prints."""

from __future__ import annotations

from tests.chaos.faults.data_faults import (
    ListsDeleted,
    LogGone,
    LogHole,
    LogOfWrongType,
    LogUnreadable,
    RecordGone,
    RecordOfWrongType,
)
from tests.chaos.faults.fault import Fault
from tests.chaos.faults.message_faults import Duplicates, Malformed, Revoked
from tests.chaos.faults.process_faults import (
    EngineHangs,
    EngineHangsLoading,
    EngineKilled,
    TextProcessKilled,
    WorkerGroupKilled,
    WorkerKilled,
    WorkerLeaves,
    WorkerLeavesAtOnce,
    WorkerSentAway,
    WorkerStartsWithoutRedis,
    WorkerStopped,
)
from tests.chaos.faults.redis_faults import (
    ClockJumps,
    ConnectionsCut,
    DiskFull,
    FailOver,
    Full,
    LaggingReplica,
    OlderSnapshot,
    OlderSnapshotAndKill,
    Paused,
    ReadOnly,
    RedisKilled,
    ScriptsFlushed,
    Slow,
    WithoutReplicas,
)
from tests.chaos.faults.request_faults import CancelStorm, DeadlyRequest, HugePrompts, QueueIsFull

FAULTS: tuple[type[Fault], ...] = (
    EngineKilled,
    WorkerKilled,
    WorkerGroupKilled,
    WorkerStopped,
    EngineHangs,
    EngineHangsLoading,
    TextProcessKilled,
    WorkerLeaves,
    WorkerLeavesAtOnce,
    WorkerSentAway,
    WorkerStartsWithoutRedis,
    RedisKilled,
    OlderSnapshot,
    OlderSnapshotAndKill,
    LaggingReplica,
    FailOver,
    Full,
    DiskFull,
    ReadOnly,
    WithoutReplicas,
    Paused,
    Slow,
    ConnectionsCut,
    ScriptsFlushed,
    ListsDeleted,
    RecordOfWrongType,
    RecordGone,
    LogOfWrongType,
    LogGone,
    LogUnreadable,
    LogHole,
    ClockJumps,
    Duplicates,
    Malformed,
    Revoked,
    CancelStorm,
    DeadlyRequest,
    HugePrompts,
    QueueIsFull,
)

SHORT: tuple[type[Fault], ...] = (
    OlderSnapshot,
    EngineKilled,
    Malformed,
    FailOver,
    WorkerKilled,
    LogOfWrongType,
    Full,
    RedisKilled,
    WorkerStopped,
    ConnectionsCut,
    ListsDeleted,
    WorkerGroupKilled,
)
"""What a run of a minute stages, in this order, as far as the time is enough."""
