"""What sequences hold of a model's cache: blocks of keys and values, and slots of states."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from worker.engine.cache.block_tables import BlockTables
from worker.engine.cache.state_slots import StateSlots
from worker.engine.sequence import Sequence

MOST_PUBLISHED = 32
"""Sequences whose blocks a step makes known, 8 us each: those that begin together fill theirs together."""
LEAST_FORESEEN = 256
"""Steps for which all that run have what they need when another one starts, if their outputs may be so long."""
OUTPUTS_REMEMBERED = 64
"""Of about so many that ended it is known how long they became: others are expected to become as long."""


class SequenceCache:
    """Block tables, and in a model with recurrent layers state slots: a running sequence has both, others neither."""

    def __init__(self, *, num_blocks: int, block_tokens: int, num_states: int, rewrites_blocks: bool) -> None:
        """``num_states``: 0 without recurrent layers. ``rewrites_blocks``: see `worker.engine.scheduler.Scheduler`."""
        # Where blocks are rewritten, a sequence may begin within a known block, where no snapshot is.
        self.block_tables = BlockTables(
            num_blocks=num_blocks, block_tokens=block_tokens, rewrites_blocks=rewrites_blocks and not num_states
        )
        self.state_slots = StateSlots(num_slots=num_states, block_tokens=block_tokens) if num_states else None
        self._mean_output = 0.0  # tokens

    @property
    def num_states(self) -> int:
        """State slots; 0 without recurrent layers."""
        return 0 if self.state_slots is None else self.state_slots.pool.num_entries

    @property
    def num_states_used(self) -> int:
        """State slots that sequences hold; snapshots are in others, too."""
        return 0 if self.state_slots is None else self.state_slots.pool.num_used

    def awaits_prefix(self, sequence: Sequence) -> bool:
        """See `BlockTables.awaits_prefix`. With recurrent layers nobody waits: a prefix needs a snapshot, too."""
        return self.state_slots is None and self.block_tables.awaits_prefix(sequence)

    def start(self, sequence: Sequence, *, beside: Collection[Sequence]) -> bool:
        """Give a waiting sequence all that its tokens need, known prefixes first.

        False, and it has nothing, if no state slot is free, or too few blocks for it and those that run ``beside`` it.
        """
        states = self.state_slots
        if states is not None and not states.pool.num_free:
            return False
        known = self.block_tables.match(sequence)
        num_known = len(known)
        if states is not None:
            del known[states.match(sequence.block_hashes[:num_known]) :]
        num_foreseen = max(LEAST_FORESEEN, round(self._mean_output))
        if not self.block_tables.start(sequence, known, beside=beside, num_foreseen=num_foreseen):
            return False
        if states is not None:
            states.start(sequence, num_known=num_known)
        return True

    def finish_launch(self, growing: Iterable[Sequence], *, reserve: int) -> None:
        """Publish some of what was put off, and give the ``growing`` sequences blocks for the tokens that they have.

        As long as more than ``reserve`` blocks are free.
        """
        self.block_tables.publish_some(MOST_PUBLISHED)
        self.block_tables.grow_all(growing, reserve=reserve)

    def forget(self, sequence: Sequence) -> None:
        """Nobody else shall read what a sequence computed."""
        self.block_tables.forget(sequence)
        if self.state_slots is not None:
            self.state_slots.forget(sequence)

    def release(self, sequence: Sequence) -> None:
        """Take back all that a running sequence holds: nothing of it is computed any more."""
        if sequence.finish_reason is not None:
            self._mean_output += (sequence.num_output - self._mean_output) / OUTPUTS_REMEMBERED
        self.block_tables.release(sequence)
        if self.state_slots is not None:
            self.state_slots.release(sequence)

    def check_invariants(self, running: Collection[Sequence]) -> None:
        """Blocks and slots are held by the ``running`` sequences, and by nobody else."""
        self.block_tables.check_invariants(running)
        if self.state_slots is not None:
            self.state_slots.check_invariants(running)
