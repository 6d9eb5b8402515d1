"""A Redis that is away, forgets, is replaced, refuses to write, or is slow."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from tests.chaos.faults.fault import Fault, Scene, Staged

UNREACHABLE = ("127.0.0.1", 1)


class RedisKilled(Fault):
    """SIGKILL, and back some time later with all that was acknowledged."""

    name = "Redis SIGKILL and restart"
    is_kill = True
    weight = 6

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Be away for a moment or for a while."""
        scene.redis.kill()
        staged.num_kills += 1
        scene.wait(*scene.chance.choice([(0.0, 0.5), (1.0, 6.0)]))
        scene.redis.start()


class OlderSnapshot(Fault):
    """Redis comes back without what was written last, as after a power loss under ``appendfsync everysec``."""

    name = "Redis back from an older snapshot"
    weight = 3

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Forget some seconds."""
        forget(scene, staged)


class OlderSnapshotAndKill(Fault):
    """The same, and then a worker or an engine dies: whoever goes on must notice that something is missing."""

    name = "older snapshot, then a SIGKILL"
    ends_workers = True
    weight = 3

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Forget some seconds and kill somebody soon after."""
        forget(scene, staged)
        scene.wait(0.0, 1.0)
        worker = scene.worker()
        if worker is None:
            return
        engine = worker.engine()
        if scene.chance.random() < 0.3 and engine is not None:
            with suppress(psutil.NoSuchProcess):
                engine.kill()
        else:
            worker.expected_exit = -signal.SIGKILL
            worker.signal(signal.SIGKILL)
            worker.process.wait()
        staged.num_kills += 1


class LaggingReplica(Fault):
    """A replica that lacks the last seconds is promoted."""

    name = "lagging replica promoted"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Lose the master."""
        replica = scene.redis.start_replica()
        staged.forgotten_since_s = scene.redis.promote_lagging(replica, scene.chance.uniform(0.2, 2.0))
        staged.forgetting_ended_s = time.monotonic()
        staged.num_kills += 1


class FailOver(Fault):
    """A replica that lacks nothing is promoted; connections stay with the demoted server for a moment."""

    name = "failover to a replica"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Promote it."""
        replica = scene.redis.start_replica()
        scene.redis.fail_over(replica, connections_stay_s=scene.chance.choice([0.0, 2.0]))


class _Refusing(Fault):
    """Redis refuses to write for a while."""

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Refuse, then not."""
        with self.refusing(scene):
            scene.wait(1.0, 5.0)

    @contextmanager
    def refusing(self, scene: Scene) -> Iterator[None]:
        """For as long as this lasts."""
        with scene.redis.connection() as connection:
            self.begin(connection)
        yield
        with scene.redis.connection() as connection:
            self.end(connection)

    def begin(self, connection: Any) -> None:
        """Refuse."""

    def end(self, connection: Any) -> None:
        """Refuse no more."""


class Full(_Refusing):
    """No memory is left (``maxmemory``, noeviction)."""

    name = "Redis full"

    def begin(self, connection: Any) -> None:
        """As if there were less memory than is used."""
        connection.config_set("maxmemory", connection.info("memory")["used_memory"] // 2)

    def end(self, connection: Any) -> None:
        """No limit."""
        connection.config_set("maxmemory", 0)


class DiskFull(_Refusing):
    """Snapshots fail, so that Redis refuses to write (MISCONF)."""

    name = "Redis disk full"

    @contextmanager
    def refusing(self, scene: Scene) -> Iterator[None]:
        """For as long as this lasts."""
        with scene.redis.broken_snapshots():
            yield


class ReadOnly(_Refusing):
    """The server believes that it is a replica (READONLY)."""

    name = "Redis read-only"

    def begin(self, connection: Any) -> None:
        """Of a master that cannot be reached."""
        connection.replicaof(*UNREACHABLE)

    def end(self, connection: Any) -> None:
        """It is a master again."""
        connection.replicaof("NO", "ONE")


class WithoutReplicas(_Refusing):
    """The server wants a replica before it writes, and has none (NOREPLICAS)."""

    name = "Redis without replicas"

    def begin(self, connection: Any) -> None:
        """It wants one."""
        connection.config_set("min-replicas-to-write", 1)

    def end(self, connection: Any) -> None:
        """It wants none."""
        connection.config_set("min-replicas-to-write", 0)


class Paused(Fault):
    """Redis answers nobody for longer than a lease."""

    name = "Redis paused"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Pause it."""
        pause_s = scene.chance.uniform(1.2, 2.0) * scene.lease_s
        with scene.redis.connection() as connection:
            connection.client_pause(round(1000 * pause_s))
        time.sleep(pause_s)


class Slow(Fault):
    """The network adds some time to each read."""

    name = "Redis slow"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Slow it down."""
        scene.redis.proxy.tell(delay_s=scene.chance.uniform(0.03, 0.25))
        scene.wait(2.0, 5.0)
        scene.redis.proxy.tell(delay_s=0.0)


class ConnectionsCut(Fault):
    """All connections are cut at once, perhaps several times."""

    name = "connections cut"
    weight = 2

    def stage(self, scene: Scene, staged: Staged) -> None:
        """By the server, or somewhere on the way."""
        for _ in range(scene.chance.choice([1, 1, 4])):
            if scene.chance.random() < 0.5:
                scene.redis.proxy.tell(cut="all")
            else:
                with scene.redis.connection() as connection:
                    for kind in ("normal", "pubsub"):
                        connection.client_kill_filter(_type=kind, skipme=True)
            scene.wait(0.0, 0.5)


class ScriptsFlushed(Fault):
    """Redis knows no script any more."""

    name = "scripts flushed"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Flush them."""
        with scene.redis.connection() as connection:
            connection.script_flush()


class ClockJumps(Fault):
    """The clock of Redis, or of one worker, jumps by up to two minutes and back."""

    name = "clock jumps"

    def why_not(self, scene: Scene) -> str:
        """There must be a C compiler."""
        return scene.clock.why_not

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Jump there and back."""
        name = scene.chance.choice(["redis", "worker"])
        scene.clock.shift(name, scene.chance.choice([-1, 1]) * scene.chance.randrange(5, 120))
        scene.wait(2.0, 4.0)
        scene.clock.shift(name, 0)


def forget(scene: Scene, staged: Staged) -> None:
    """Redis dies and comes back without what was written in the last moments."""
    staged.forgotten_since_s = time.monotonic()
    end = scene.redis.log_end()
    scene.wait(0.1, 2.5)
    scene.redis.kill()
    staged.num_kills += 1
    scene.redis.cut_log(end)
    scene.wait(0.0, 1.0)
    scene.redis.start()
    staged.forgetting_ended_s = time.monotonic()
