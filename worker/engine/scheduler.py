"""Which sequences get how many tokens in the next step.

A step is a plan {sequence: number of tokens} (the idea is vLLM's): a prefill chunk and a decode differ in the number
only. Decodes come first, one token each; what is left of the step's token budget goes to prefills, so that a long
prompt delays nobody's next token by more than a step. Where a constraint leaves no choice, an answer goes on with
several tokens at once, which are a small prefill: these come before those of prompts. Sequences that decode in every
step are a cohort (`worker.engine.cohort`): a plan looks at those of it that may need something, and at all others.

Sequences are ranked by ``arrival step + AGEING_STEPS * priority`` and then by arrival. The rank never changes, and
whoever arrives late enough ranks behind, however urgent: so nobody starves. A sequence is admitted when the pool has
blocks for all the tokens that it has, and for what all that run will draw soon; when a decode finds no block, the last
in rank gives up all its blocks, waits again and is computed anew (from the prefix cache, as far as its blocks are still
there). The first in rank is never preempted, and every request fits the pool on its own: so each step brings somebody
closer to the end.

The scheduler runs ahead of the draws: a step may be planned while another one runs whose tokens are still unknown,
because what it needs to know of a token is that there will be one. Where it needs more, it waits: a sequence with a
constraint, which must see each token before it allows the next, and one that ends or must start anew with the token
being drawn, are left out; a plan that would preempt is put off until no step is in flight. Where the last token is
being drawn, somebody else has the place in the next step. Blocks of a sequence that leaves are free at once, although a
step in flight may still write to them: steps run in the order of their launch, so whoever gets them next writes later.

While fewer than half of few that run have a constraint, these go on together in every second or third step, when their
tokens are known, and the others run ahead as if alone. Otherwise a plan that would leave one out a second time is put
off. Of many on a device that works by itself all are in every step, which is drawn from late
(`worker.engine.logits.open_step`), and what must follow is drawn, too. Those of which a constraint needs long for a
token are left out meanwhile, where most have none (`worker.engine.logits.late_draws`).

A sequence that reports log probabilities of its prompt computes all of it, whatever the prefix cache holds: a cached
block has no logits. A step has as many rows of logits as sequences may run. One is kept for each that runs, and of the
others such a prompt gets half, so that some are left for who comes next.

Choices of one request: the first computes the prompt while the others wait; they then find its full blocks in the
prefix cache, as any request with an equal prefix does. Requests that come together with a long prefix that is not known
yet do the same: one computes it, and the others are passed over until it has. So all hold the same blocks of it.

With recurrent layers a sequence has a state besides its blocks, and a chunk of its prompt also ends where a snapshot of
that is kept (`worker.engine.cache.state_slots`): a prefix is known as far as its blocks are and a snapshot is.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import count
from operator import attrgetter

from worker.contract import STEP_TOKENS, StepSizes
from worker.engine.cache.sequence_cache import SequenceCache
from worker.engine.cohort import Cohort, StartGrouping, StepInFlight
from worker.engine.sequence import Chunk, Sequence

AGEING_STEPS = 256
"""A request that is one priority level more urgent overtakes those that arrived at most this many steps earlier."""
MANY = 64
"""Running sequences, for which a step takes the host long."""
MOST_PASSED = 32
"""Waiting sequences of which a step finds out that their prefix is being computed."""
_rank = attrgetter("rank")


class Scheduler:
    """Owns the waiting and the running sequences and what these hold of the cache."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_tokens: int,
        step_tokens: int,
        max_sequences: int,
        recompute_at: int | None = None,
        rewrites_blocks: bool = False,
        num_states: int = 0,
    ) -> None:
        """``recompute_at``: see `worker.model.registry.Model`. ``num_states``: state slots, if it has recurrent layers.

        ``rewrites_blocks``: a token that is computed again, in whatever step, has the same keys and values bit for bit:
        then it may be written again to a block that others read. So does a device that works by itself.
        """
        self.block_tokens = block_tokens
        self.recompute_at = recompute_at
        self.step_tokens = step_tokens
        self.max_running = min(max_sequences, step_tokens)  # every running sequence gets a token in every step
        self.cache = SequenceCache(
            num_blocks=num_blocks, block_tokens=block_tokens, num_states=num_states, rewrites_blocks=rewrites_blocks
        )
        self._works_by_itself = rewrites_blocks
        self.waiting: list[Sequence] = []  # by rank
        self.running: list[Sequence] = []  # by rank
        self.cohort = Cohort(block_tokens, recompute_at)
        self._apart: dict[Sequence, Chunk] = {}  # the others that run, and the chunk of each when it decodes
        self.num_steps = self.num_preemptions = self.num_prefix_hit_tokens = self._num_step_tokens = 0
        self.lacks_blocks = False  # whether the first that waited found none when it was last tried to admit it
        self.num_constrained = 0  # of those that run, how many have a constraint; kept, as every step asks
        self._num_steps_of_size = [0] * (len(STEP_TOKENS) + 1)
        self._numbers, self._start_grouping = count(), StartGrouping()

    @property
    def step_sizes(self) -> StepSizes:
        """How many tokens the steps so far had."""
        return StepSizes(tuple(self._num_steps_of_size), self._num_step_tokens)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its longest form must fit the pool."""
        sequence.rank = (self.num_steps + AGEING_STEPS * sequence.priority, next(self._numbers))
        insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, whatever it was doing."""
        assert sequence.finish_reason is not None, "only a finished sequence leaves"
        if sequence.finish_reason == "error":  # nobody else shall read what it computed
            self.cache.forget(sequence)
        if sequence.is_running:
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)

    def restart(self, sequence: Sequence, hash_root: bytes) -> None:
        """What was computed of a running sequence is void: compute it all again, as one of ``hash_root``."""
        self._stop(sequence)
        sequence.hash_root = hash_root
        sequence.block_hashes = []

    @property
    def has_many(self) -> bool:
        """Whether so many run that the device had better have work that the host has prepared."""
        return self._works_by_itself and len(self.running) >= MANY

    def plan(self, *, ahead: int = 0, depth: int = 1) -> list[Chunk]:
        """Choose the next step's work; preempts and admits. Empty only when there is nothing to do.

        ``ahead``: so many are in flight, of ``depth``. Then it may be empty too, as their draws must be known first.
        The cohort's chunks come first; the same list is of the same ones.
        """
        if self.cohort.num_constrained and not self.has_many:
            self.set_apart([each for each in self.running if each.constraint is not None])
        elif self.cohort.num_constrained and ahead > 1:
            return []
        chunks: list[Chunk] = []  # besides the cohort's
        prefills: list[Sequence] = []
        is_minority = 2 * self.num_constrained < len(self.running) and not self.has_many
        is_late = ahead == 1 and self.has_many  # a step finds only what the one before it draws
        is_their_turn = not is_minority or self.num_steps % (ahead + 1) == 0
        most_running = self.max_running
        for sequence in sorted([*self.cohort.due, *self._apart], key=_rank):
            if sequence.is_late or (not is_their_turn and sequence.constraint is not None and sequence.num_output):
                continue
            num_tokens = sequence.num_tokens
            if num_tokens > len(sequence.token_ids) and self._awaits_draw(sequence, num_tokens, is_late=is_late):
                if ahead > 1 and sequence.constraint is not None and not is_minority:
                    return []
                most_running += sequence.ends_with_draw
                self.set_apart([sequence])
                continue
            if len(sequence.block_ids) * self.block_tokens < num_tokens and not self._grow(sequence, ahead):
                if ahead:
                    return []
                continue  # it was preempted itself
            if sequence in self.cohort:
                continue
            if sequence.num_pending > 1:
                prefills.append(sequence)
            elif (sequence.constraint is None or self.has_many) and self.cohort.takes(sequence):
                self.cohort.join(sequence, self._apart.pop(sequence))
            else:
                chunks.append(self._apart[sequence])
        budget = self.step_tokens - len(self.cohort) - len(chunks)
        spare_rows = most_running - len(self.running)
        prefills.sort(key=lambda sequence: sequence.num_computed < sequence.num_prompt)
        for sequence in prefills:
            if budget and sequence.is_running:
                chunks.append(self._prefill(sequence, budget, spare_rows))
                budget -= chunks[-1].num_tokens
                spare_rows -= chunks[-1].num_extra_rows
        may_start = not self.has_many or self._start_grouping.starts(spare_rows, len(self.waiting), depth)
        if budget and self.waiting and spare_rows and may_start:
            for sequence in self._admit(most_running):
                chunks.append(self._prefill(sequence, budget, spare_rows - 1))
                budget -= chunks[-1].num_tokens
                spare_rows -= 1 + chunks[-1].num_extra_rows
                if not budget or not spare_rows:
                    break
        if chunks or self.cohort:
            self.num_steps += 1
            self._num_step_tokens += self.step_tokens - budget
            self._num_steps_of_size[bisect_left(STEP_TOKENS, self.step_tokens - budget)] += 1
        return [*self.cohort.chunks, *chunks] if chunks else self.cohort.chunks

    def launch(self, chunks: list[Chunk]) -> StepInFlight:
        """What the chunks compute is in the cache for every step that is launched from now on."""
        step = self.cohort.launch(chunks)
        for sequence, num_tokens, draws in step.others:
            sequence.launch(num_tokens, draws)
            self.cache.block_tables.publish(sequence)
            if self.cache.state_slots is not None:
                self.cache.state_slots.launch(sequence)
        for sequence in self.cohort.due:
            self.cache.block_tables.publish(sequence)
        return step

    def set_apart(self, sequences: Iterable[Sequence]) -> None:
        """These are not in the cohort."""
        self._apart.update({each: self.cohort.leave(each) for each in sequences if each in self.cohort})

    def disband(self) -> None:
        """The chunks of a plan are to be launched one by one, and no step is in flight."""
        self._apart.update(self.cohort.disband())

    def append(self, sequence: Sequence, token_id: int) -> None:
        """A token that a launched step drew is known now."""
        sequence.append(token_id)
        self.cache.block_tables.publish_later(sequence)

    def finish_launch(self) -> None:
        """Do while the device is at work what takes long where there are many."""
        self.cache.finish_launch(self.cohort.due if self.has_many else (), reserve=len(self.running))

    def _awaits_draw(self, sequence: Sequence, num_tokens: int, *, is_late: bool) -> bool:
        """Whether one of so many tokens cannot go on before all are known; ``is_late``: before its step draws."""
        is_early = sequence.constraint is not None and not is_late
        return is_early or num_tokens >= sequence.most_tokens or num_tokens - 1 == self.recompute_at

    def _prefill(self, sequence: Sequence, budget: int, spare_rows: int) -> Chunk:
        num_tokens = min(sequence.num_pending, budget)
        if sequence.snapshot_ends:
            num_tokens = min(num_tokens, sequence.snapshot_ends[0] - sequence.num_computed)
        unreported = sequence.unreported(num_tokens)
        if unreported:  # each takes a row of logits
            num_tokens = min(num_tokens, unreported.start - sequence.num_computed + 1 + spare_rows // 2)
        return Chunk(sequence, num_tokens, num_tokens == sequence.num_pending)

    def _grow(self, sequence: Sequence, ahead: int) -> bool:
        """Get one that runs blocks for its tokens; False if it, or ``ahead`` of draws anybody, had to be preempted."""
        while sequence.is_running and not self.cache.block_tables.grow(sequence):
            if ahead:
                return False
            self.num_preemptions += 1
            self.running[-1].num_preemptions += 1
            self._stop(self.running[-1])
        return sequence.is_running

    def _stop(self, sequence: Sequence) -> None:
        assert not sequence.num_unread, "a sequence stopped before its draws were known"
        self._leave(sequence)
        insort(self.waiting, sequence, key=_rank)

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if self._apart.pop(sequence, None) is None:
            self.cohort.leave(sequence)
        self.num_constrained -= sequence.constraint is not None
        self.cache.release(sequence)

    def _admit(self, most_running: int) -> Iterator[Sequence]:
        """Start waiting sequences in the order of their rank until one does not fit, or so many run.

        Those whose prefix is being computed are passed over, new ones a few at a time, as it takes long to find out.
        """
        num_passed = 0
        for sequence in [each for each in self.waiting if not each.waits_for_leader and not each.waits_for_prefix]:
            if self.cache.awaits_prefix(sequence):
                num_passed += 1
                if num_passed == MOST_PASSED:
                    return
                continue
            self.lacks_blocks = len(self.running) < most_running and not self._start(sequence)
            if not sequence.is_running:
                return
            yield sequence

    def _start(self, sequence: Sequence) -> bool:
        """Give a waiting sequence what its tokens need of the cache; False if it does not fit beside those that run."""
        if not self.cache.start(sequence, beside=self.running):
            return False
        self.num_prefix_hit_tokens += sequence.num_computed
        sequence.prefix_leader = None
        sequence.count_prefix_hits()
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_rank)
        self._apart[sequence] = Chunk(sequence, 1, True)
        self.num_constrained += sequence.constraint is not None
        return True

    def check_invariants(self) -> None:
        """Only running sequences hold anything; every queue is in order and within its bounds."""
        self.cache.check_invariants(self.running)
        assert sum(not each.ends_with_draw for each in self.running) <= self.max_running
        assert self._apart.keys() == {each for each in self.running if each not in self.cohort}
        self.cohort.check_invariants(self.running)
        assert self.num_constrained == sum(sequence.constraint is not None for sequence in self.running)
        assert all(sequence.is_running for sequence in self.running)
        assert not any(each.is_running or each.num_computed for each in self.waiting), "a waiting one holds blocks"
        for queue in (self.waiting, self.running):
            assert (ranks := [sequence.rank for sequence in queue]) == sorted(ranks)
            for sequence in queue:
                sequence.check_invariants()
                assert sequence.finish_reason is None, "a finished sequence is still queued"
