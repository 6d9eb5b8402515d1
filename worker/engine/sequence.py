"""One choice of a request while it is being generated, and what a step computes of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.contract import FinishReason, Sampling, Usage, logprob_record_bytes
from worker.engine.token_constraint import TokenConstraint


@dataclass(slots=True, eq=False)
class StepClock:
    """Counts steps, for all the sequences that each of them computes one token of."""

    num_steps: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """Its tokens (prompt, then output), its blocks in the KV cache, and how far they are filled.

    The engine runs ahead of what it knows: a token that a launched step draws counts as one of the sequence's
    (`num_unread`) before the host has read which one it is. ``leader`` is the request's first choice: it computes the
    prompt, the others wait for its blocks. ``rank`` is the scheduler's: lower goes first.
    """

    request_id: str
    choice: int
    sampling: Sampling
    priority: int
    token_ids: list[int]
    num_prompt: int
    max_output: int
    """``sampling.max_tokens``, or less where the context ends before."""
    packed_ids: bytes = b""
    """The first of its tokens, 32 bits each, as whoever made it had them."""
    hash_root: bytes = b""
    """Sequences share blocks with those of an equal root only."""
    leader: Sequence | None = None
    prefix_leader: Sequence | None = None
    """Another request's, which computes the first ``num_awaited_blocks`` of this one."""
    num_awaited_blocks: int = 0
    constraint: TokenConstraint | None = None
    """What its grammar and its bad words allow; it has taken the ids of the output, and is nobody else's."""
    prompt_logprobs: bytearray | None = None
    """Records of its prompt's log probabilities, as far as known; None if nobody wants them, or has them already."""
    num_reported: int = 0
    """Tokens of its prompt, from the first on, after which launched steps report the log probabilities of the next."""
    sampling_row: bytes | None = None
    """``sampling`` and the seed as the device takes them, once somebody needed that."""
    rank: tuple[int, int] = (0, 0)
    block_ids: list[int] = field(default_factory=list)
    revision: int = 0
    """Grows when what a device was told no longer holds: ``block_ids`` is another table, and not this one with more
    blocks, or a token is another one than was drawn."""
    block_hashes: list[bytes] = field(default_factory=list)
    num_published: int = 0
    """Blocks, from the first on, that the prefix cache was told of."""
    state_slot: int | None = None
    """Where its next step writes its state; None while it waits, and without recurrent layers."""
    state_source: int | None = None
    """Where its next step finds its state: there, or in a snapshot; None if nothing of it is computed."""
    snapshot_ends: list[int] = field(default_factory=list)
    """Numbers of computed tokens, ascending, at which a chunk ends so that a snapshot can be kept."""
    finish_reason: FinishReason | None = None
    num_cached: int | None = None
    """Tokens of its prompt that were found in the prefix cache when it was first admitted; None before."""
    num_prefix_hits: int = 0
    """Tokens whose keys and values were found in the prefix cache, each time that it was admitted."""
    num_preemptions: int = 0
    num_sent: int = field(init=False)
    """Tokens that are not for `worker.engine.output_buffer` to hand out, as it has, or an earlier owner."""
    is_late: bool = False
    """Whether its constraint has not taken yet what was drawn: it is in no step until then."""
    unsent_logprobs: list[bytes] = field(default_factory=list)  # records of the log probabilities of the others
    clock: StepClock | None = None
    """What counts its tokens while every step computes one (`worker.engine.cohort`)."""
    _num_tokens: int = field(init=False)
    """`num_tokens`, and this and the next one as they were when the clock began, if it counts."""
    _num_computed: int = field(init=False, default=0)
    most_tokens: int = field(init=False)  # with so many it ends
    is_edited: bool = field(init=False)
    """Whether anything changes its logits before a draw: penalties, biases, or stop ids that `min_tokens` bans."""
    draws_in_graph: bool = field(init=False)
    """Whether a draw needs nothing of the host (no mask is written for it) and tells it nothing but the id."""
    takes_largest: bool = field(init=False)
    """Whether a draw takes the largest logit as the model gives it, and needs nothing of the host either."""
    takes_forced: bool = field(init=False)
    """Whether a token without alternatives needs no draw: nobody asks for log probabilities, and no edits count it."""

    def __post_init__(self) -> None:
        self._num_tokens = self.num_sent = len(self.token_ids)
        self.most_tokens = self.num_prompt + self.max_output
        options = self.sampling
        self.is_edited = self.is_penalised or bool(self.biases or (options.stop_token_ids and options.min_tokens))
        self.draws_in_graph = self.constraint is None and options.logprobs is None
        self.takes_largest = self.draws_in_graph and options.temperature == 0 and not self.is_edited
        self.takes_forced = self.constraint is not None and options.logprobs is None and not self.is_edited

    @property
    def is_penalised(self) -> bool:
        """Whether its draws depend on the tokens before them."""
        options = self.sampling
        return options.repetition_penalty != 1 or bool(options.presence_penalty or options.frequency_penalty)

    @property
    def biases(self) -> Mapping[int, float]:
        """What is added to logits, by token id: what the request says, and -inf for a bad word of one token."""
        options = self.sampling
        return options.logit_bias | {word[0]: -math.inf for word in options.bad_words if len(word) == 1}

    @property
    def banned_ids(self) -> Collection[int]:
        """Ids that cannot follow the known ones: those that would end it before there are ``min_tokens``."""
        num_known = len(self.token_ids) - self.num_prompt
        return self.sampling.stop_token_ids if num_known < self.sampling.min_tokens else ()

    @property
    def usage(self) -> Usage | None:
        """What it has cost the engine, once it has ended."""
        return None if self.finish_reason is None else Usage(self.num_prefix_hits, self.num_preemptions)

    @property
    def num_left(self) -> int:
        """Tokens that may still be appended."""
        return self.most_tokens - len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """All of them, known or not."""
        return self._num_tokens if self.clock is None else self._num_tokens + self.clock.num_steps

    @property
    def num_computed(self) -> int:
        """Tokens whose keys and values are in the cache, once the steps that were launched have run."""
        return self._num_computed if self.clock is None else self._num_computed + self.clock.num_steps

    @num_computed.setter
    def num_computed(self, number: int) -> None:
        assert self.clock is None, "its tokens are counted by a clock"
        self._num_computed = number

    @property
    def num_unread(self) -> int:
        """Tokens at the end that launched steps draw and whose ids are not in ``token_ids`` yet."""
        return self.num_tokens - len(self.token_ids)

    @property
    def ends_with_draw(self) -> bool:
        """Whether its last token is being drawn, so that no other step has it; not one whose draw may be void."""
        return self.constraint is None and self.num_tokens >= self.most_tokens and self.num_unread > 0

    @property
    def num_output(self) -> int:
        """Tokens of the output, known or not."""
        return self.num_tokens - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens to compute before the next one can be drawn; 1 is decoding, more is prefill."""
        return self.num_tokens - self.num_computed

    @property
    def is_running(self) -> bool:
        """Whether it holds blocks: a waiting sequence has none, a running one has at least one."""
        return bool(self.block_ids)

    @property
    def waits_for_leader(self) -> bool:
        """Whether another choice is about to compute the prompt that this one can share."""
        leader = self.leader
        return leader is not None and leader.finish_reason is None and leader.num_computed < leader.num_prompt

    @property
    def waits_for_prefix(self) -> bool:
        """Whether another request is about to compute a prefix that this one can share."""
        leader = self.prefix_leader
        return leader is not None and leader.is_running and leader.num_published < self.num_awaited_blocks

    def outgrows(self, limit: int) -> bool:
        """Whether tokens that were appended now make it longer than the model has computed it for: ``limit``."""
        return not self.num_unread and self.num_computed <= limit < self.num_tokens

    def unreported(self, num_tokens: int) -> range:
        """Positions among its next ``num_tokens`` after which log probabilities of the prompt are to be reported."""
        if self.prompt_logprobs is None:
            return range(0)
        start, end = max(self.num_computed, self.num_reported), min(self.num_computed + num_tokens, self.num_prompt - 1)
        return range(start, max(start, end))

    def take_prompt_logprobs(self) -> bytes:
        """Hand them out, once: the whole prompt has been computed."""
        assert self.prompt_logprobs is not None, "they are taken once"
        assert self._num_prompt_logprobs == self.num_prompt - 1, "log probabilities of the prompt are missing"
        logprobs, self.prompt_logprobs = bytes(self.prompt_logprobs), None
        return logprobs

    @property
    def _num_prompt_logprobs(self) -> int:
        return len(self.prompt_logprobs or ()) // logprob_record_bytes(self.sampling.prompt_logprobs or 0)

    def count_prefix_hits(self) -> None:
        """It was admitted, and all that is computed of it was found in the prefix cache."""
        self.num_prefix_hits += self.num_computed
        if self.num_cached is None:
            self.num_cached = min(self.num_computed, self.num_prompt)

    def drop_blocks(self) -> None:
        """Hold no blocks: nothing of it is computed any more."""
        self.block_ids = []
        self.revision += 1
        self.num_published = self.num_computed = 0

    def launch(self, num_tokens: int, draws: bool) -> None:
        """A step computes its next ``num_tokens``, and draws another token if ``draws``."""
        if self.prompt_logprobs is not None:
            self.num_reported += len(self.unreported(num_tokens))
        self.num_computed += num_tokens
        if draws:
            assert self.num_computed == self.num_tokens, "a token drawn before all others were computed"
            self._num_tokens += 1

    def start_clock(self, clock: StepClock) -> None:
        """From now on ``clock`` counts instead of `launch`: each step computes its last token and draws another."""
        assert self.clock is None, "its tokens are counted by a clock"
        self._num_tokens -= clock.num_steps
        self._num_computed -= clock.num_steps
        self.clock = clock

    def stop_clock(self) -> None:
        """Its tokens are counted by `launch` again."""
        assert self.clock is not None, "no clock to be stopped"
        self._num_tokens += self.clock.num_steps
        self._num_computed += self.clock.num_steps
        self.clock = None

    def take_back(self, num_tokens: int, draws: bool) -> None:
        """The step that was launched last, with these, is nothing of it: they are computed in another one."""
        self.num_computed -= num_tokens
        if draws:
            self._num_tokens -= 1

    def forget_unread_reports(self) -> None:
        """Log probabilities of the prompt that were not read will be reported by another step."""
        if self.prompt_logprobs is not None:
            self.num_reported = self._num_prompt_logprobs

    def append(self, token_id: int) -> None:
        """Take the first of the tokens that were drawn."""
        assert self.num_unread, "a token that nobody drew"
        self.token_ids.append(token_id)
        self.update_finish_reason()

    def append_forced(self, token_id: int) -> None:
        """Take a token that was not drawn, as no other could have been."""
        assert not self.num_unread, "a token put before those that are being drawn"
        self._num_tokens += 1
        self.token_ids.append(token_id)
        self.update_finish_reason()

    def update_finish_reason(self) -> None:
        """End the sequence if its output says so: at a stop id, with a complete document, or at its longest."""
        options, constraint = self.sampling, self.constraint
        num_output = len(self.token_ids) - self.num_prompt
        is_stopped = self.token_ids[-1] in options.stop_token_ids and num_output > options.min_tokens
        if is_stopped or (constraint is not None and constraint.is_complete):
            self.finish_reason = "stop"
        elif num_output >= self.max_output:  # more where an earlier owner allowed more
            self.finish_reason = "length"

    def check_invariants(self) -> None:
        """Computed tokens lie within the sequence and within its blocks."""
        assert self.num_unread >= 0 and len(self.token_ids) >= self.num_sent
        assert 0 < self.num_prompt <= self.num_tokens
        assert 0 <= self.num_computed <= self.num_tokens
        assert self.num_tokens <= self.most_tokens or not self.num_unread, "drawn past the end"
        assert self.prompt_logprobs is None or self._num_prompt_logprobs <= self.num_reported < self.num_prompt
        assert self.num_published <= len(self.block_ids)
        assert len(set(self.block_ids)) == len(self.block_ids), "a block twice in one table"


class Chunk(NamedTuple):
    """The next ``num_tokens`` tokens of a sequence, to be computed in one step."""

    sequence: Sequence
    num_tokens: int
    draws: bool
    """Whether the chunk reaches the sequence's last token, so that the next one can be drawn."""

    @property
    def num_extra_rows(self) -> int:
        """Rows of logits that it needs, as long as it has not been launched, besides one of its sequence."""
        return max(0, len(self.sequence.unreported(self.num_tokens)) + self.draws - 1)

    def is_due(self) -> bool:
        """Whether it can still be computed as planned."""
        return self.sequence.is_running and self.draws == (self.num_tokens == self.sequence.num_pending)
