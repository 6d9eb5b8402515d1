"""What is known of every line of a batch, in nine bytes a line: its digest if it has a result, how often it failed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from orcd.batch.place import Place

_MAX_FAILURES = 255


class LineIndex:
    """For inputs of so many lines each. Every method raises IndexError for a line that no input has."""

    def __init__(self, num_lines: Sequence[int]) -> None:
        self._digests = [array("Q", bytes(8 * number)) for number in num_lines]  # plus 1: 0 is a line without result
        self._failures = [bytearray(number) for number in num_lines]
        self.num_done = 0

    def finish(self, place: Place, digest: int) -> None:
        """The line has a result."""
        digests = self._digests[place.file]
        self.num_done += not digests[place.number - 1]
        digests[place.number - 1] = digest + 1

    def digest(self, place: Place) -> int | None:
        """The digest that the line had when it got its result; None if it has none."""
        stored = self._digests[place.file][place.number - 1]
        return stored - 1 if stored else None

    def fail(self, place: Place) -> None:
        """The line's job has failed once more."""
        failures = self._failures[place.file]
        failures[place.number - 1] = min(_MAX_FAILURES, failures[place.number - 1] + 1)

    def num_failures(self, place: Place) -> int:
        """How many jobs of the line have failed."""
        return self._failures[place.file][place.number - 1]

    def failures(self) -> Iterator[tuple[Place, int]]:
        """Lines without a result whose jobs have failed, with how often."""
        for file, failures in enumerate(self._failures):
            for number, times in enumerate(failures, 1):
                place = Place(file, number)
                if times and self.digest(place) is None:
                    yield place, times
