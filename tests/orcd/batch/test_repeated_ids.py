from __future__ import annotations

from orcd.batch.place import Place
from orcd.batch.repeated_ids import CallerIds, FirstPlaces


def test_an_id_that_comes_again_is_known_with_its_first_place() -> None:
    ids = CallerIds()
    for caller_id in ("a", "b", "a", 7, "7", "\ud800"):
        ids.add(caller_id)
    places = FirstPlaces(ids.repeated())
    told = [places.earlier(caller_id, Place(0, number)) for number, caller_id in enumerate(("a", "b", "a", 7, "7"), 1)]
    assert told == [None, None, Place(0, 1), None, Place(0, 4)]
    assert places.earlier("a", Place(1, 1)) == Place(0, 1)


def test_of_many_ids_none_is_taken_for_another() -> None:
    ids = CallerIds()
    for number in range(20_000):
        ids.add(f"request-{number}")
    assert not ids.repeated()
    assert FirstPlaces(ids.repeated()).earlier("request-1", Place(0, 1)) is None
