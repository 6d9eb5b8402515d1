from __future__ import annotations

import pytest

from orcd.batch.place import Place, digest_of, job_id, place_and_digest


@pytest.mark.parametrize(("place", "text"), [(Place(0, 12), "12"), (Place(1, 3), "2.3")])
def test_a_place_is_written_and_read(place: Place, text: str) -> None:
    assert str(place) == text
    assert Place.parse(text) == place


@pytest.mark.parametrize("text", ["", "a", "0", "-1", "0.1", ".1", "1.", "1.0"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Place.parse(text)


def test_a_digest_tells_lines_and_what_is_said_of_all_lines_apart() -> None:
    assert digest_of(b"a", b"") == digest_of(b"a", b"")
    assert len({digest_of(b"a", b""), digest_of(b"b", b""), digest_of(b"a", b"b")}) == 3


def test_a_job_id_names_batch_line_and_digest_and_changes_when_the_job_has_failed() -> None:
    assert job_id("batch-0a", Place(0, 12), 15, 0) == "batch-0a-12-00000000000f"
    assert job_id("batch-0a", Place(1, 12), 15, 2) == "batch-0a-2.12r2-00000000000f"
    for num_failures in (0, 2):
        for place in (Place(0, 12), Place(1, 12)):
            assert place_and_digest(job_id("batch-0a", place, 15, num_failures)) == (place, 15)


@pytest.mark.parametrize("text", ["x-1", "batch-1-3", "batch-1-0-00000000000f", "batch-1-3-00000000000g", "3-0"])
def test_an_id_that_is_not_of_a_batch_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        place_and_digest(text)
