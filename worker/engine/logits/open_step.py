"""A step that is launched up to its logits, before the tokens are known that it computes."""

from __future__ import annotations

from collections.abc import Collection

from worker.engine.cohort import StepInFlight
from worker.engine.sequence import Chunk, Sequence


def awaits_tokens(chunks: list[Chunk]) -> bool:
    """Whether a step has a sequence with a constraint, which must see each token, and its last one is not known."""
    bound = [
        sequence for sequence, _, _ in chunks if sequence.constraint is not None
    ]  # in half the time of a generator
    return any(sequence.num_unread for sequence in bound)


class OpenStep:
    """The step whose draws wait for masks, and what of it turns out to be void."""

    def __init__(self, step: StepInFlight) -> None:
        self.step = step
        """As it is now: the chunks of `void` sequences draw nothing."""
        self.void: frozenset[Sequence] = frozenset()
        """They go on with another token than the one whose logits are computed here, if they have not ended."""

    def leave_out(self, sequences: Collection[Sequence]) -> list[Sequence]:
        """These are void if they are in this step, and have not been launched in it any more; returns those.

        To be called once, before the tokens are appended that are put in the place of others. They are in no cohort.
        """
        left_out = []
        number, members, others = self.step
        self.step = StepInFlight(number, members.copy(), others.copy())  # as others may have the same lists
        for chunks in (self.step.members, self.step.others):
            for index, (sequence, num_tokens, draws) in enumerate(chunks):
                if sequence in sequences:
                    sequence.take_back(num_tokens, draws)
                    chunks[index] = Chunk(sequence, num_tokens, draws=False)
                    left_out.append(sequence)
        self.void = frozenset(left_out)
        return left_out

    def take_back(self) -> list[Chunk]:
        """It cannot be drawn from: its chunks, as they were before it was launched, of all that are not void.

        No other step is in flight, and the cohort has disbanded.
        """
        chunks = [chunk for chunk in self.step.chunks if self._is_needed(chunk.sequence)]
        for sequence, num_tokens, draws in chunks:
            sequence.take_back(num_tokens, draws)
            sequence.forget_unread_reports()
        return chunks

    def _is_needed(self, sequence: Sequence) -> bool:
        return sequence.finish_reason is None and sequence not in self.void
