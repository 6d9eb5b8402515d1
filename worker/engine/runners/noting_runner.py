"""A runner that notes which requests its steps are about, so that a death of the engine can be laid to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from worker.engine.logits.late_draws import LateDraws
from worker.engine.runner import Results, Runner
from worker.engine.runners.in_flight_file import InFlightFile
from worker.engine.sequence import Chunk, Sequence


class NotingRunner:
    """Another runner's steps; before each the file says whose sequences are in it and in the steps before it.

    A step of the same sequences as those in flight, as most are, only costs a comparison of two lists.
    """

    def __init__(self, runner: Runner, file: InFlightFile, late: LateDraws) -> None:
        """Those whose draws are ``late`` are at work, too: their constraints may be what the engine dies of."""
        self._runner = runner
        self._late = late
        self._file = file
        self._in_flight: deque[list[Sequence]] = deque()
        self._latest: list[Sequence] = []
        """Those of the latest step; steps of equal sequences share the list."""
        self._latest_chunks: list[Chunk] = []
        self._noted: tuple[list[Sequence], int] = [], 0
        """The list that all steps in flight shared when the file was written last, and its additions until then."""

    @property
    def depth(self) -> int:
        """As `Runner.depth`."""
        return self._runner.depth

    def has_time(self, share: float) -> bool:
        """As `Runner.has_time`."""
        return self._runner.has_time(share)

    def launch(self, chunks: list[Chunk], *, draws: bool = True) -> None:
        """As `Runner.launch`."""
        sequences = self._latest
        if chunks != self._latest_chunks:  # those of decodes are the same objects each time, so this is soon seen
            of_chunks = [sequence for sequence, _, _ in chunks]
            sequences = sequences if of_chunks == sequences else of_chunks
            self._latest, self._latest_chunks = sequences, chunks
        self._in_flight.append(sequences)
        self._note(sequences)
        try:
            self._runner.launch(chunks, draws=draws)
        except BaseException:
            self._in_flight.pop()
            raise

    def draw(self, void: Collection[Sequence]) -> None:
        """As `Runner.draw`."""
        try:
            self._runner.draw(void)
        except BaseException:
            self._in_flight.pop()
            raise

    def collect(self) -> Results:
        """As `Runner.collect`."""
        results = self._runner.collect()
        self._in_flight.popleft()
        return results

    def _note(self, sequences: list[Sequence]) -> None:
        is_uniform = not self._late and all(step is sequences for step in self._in_flight)
        noted, num_additions = self._noted
        if is_uniform and sequences is noted and num_additions == self._file.num_additions:
            return
        noting = [*self._in_flight, self._late.sequences]
        self._file.write(frozenset([sequence.request_id for each in noting for sequence in each]))
        self._noted = sequences if is_uniform else [], self._file.num_additions
