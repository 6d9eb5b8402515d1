"""What a worker tells the process that answers probes."""

from __future__ import annotations

from tasks.observe.health.health_snapshot import HealthSnapshot, Load, decode, encode
from worker.contract import FrameSplitter


def test_a_snapshot_comes_out_of_its_frame_as_it_went_in() -> None:
    snapshots = [HealthSnapshot(True, "ready", "", Load(jobs=3), b"a 1\n"), HealthSnapshot(False, "x", "why", Load())]
    bodies = FrameSplitter().feed(b"".join(map(encode, snapshots)))
    assert list(map(decode, bodies)) == snapshots
    assert [snapshot.is_ready for snapshot in snapshots] == [True, False]
