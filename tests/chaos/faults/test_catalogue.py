from __future__ import annotations

from tests.chaos.faults.catalogue import FAULTS, SHORT


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_short_run_stages_faults_of_the_catalogue() -> None:
    assert set(SHORT) <= set(FAULTS)
