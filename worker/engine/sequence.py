"""One choice of a request while it is being generated."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.contract import FinishReason, Sampling


@dataclass(slots=True, eq=False)
class Sequence:
    """Its tokens (prompt, then output), its blocks in the KV cache, and how far they are filled.

    ``leader`` is the request's first choice: it computes the prompt, the others wait for its blocks. ``rank`` is
    the scheduler's: lower goes first.
    """

    request_id: str
    choice: int
    sampling: Sampling
    priority: int
    token_ids: list[int]
    num_prompt: int
    max_output: int
    """``sampling.max_tokens``, or less where the context ends before."""
    hash_root: bytes = b""
    """Sequences share blocks with those of an equal root only."""
    leader: Sequence | None = None

    rank: tuple[int, int] = (0, 0)
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens to compute before the next one can be drawn; 1 is decoding, more is prefill."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_running(self) -> bool:
        """Whether it holds blocks: a waiting sequence has none, a running one has at least one."""
        return bool(self.block_ids)

    @property
    def waits_for_leader(self) -> bool:
        """Whether another choice is about to compute the prompt that this one can share."""
        leader = self.leader
        return leader is not None and leader.finish_reason is None and leader.num_computed < leader.num_prompt

    def append(self, token_id: int) -> None:
        """Take the token that was drawn."""
        assert self.num_pending == 0, "a token drawn before all others were computed"
        self.token_ids.append(token_id)
        self.update_finish_reason()

    def update_finish_reason(self) -> None:
        """End the sequence if its output says so: the last id is a stop id, or there are as many as were wanted."""
        if not self.num_output:
            return
        if self.token_ids[-1] in self.sampling.stop_token_ids and self.num_output > self.sampling.min_tokens:
            self.finish_reason = "stop"
        elif self.num_output >= self.max_output:
            self.finish_reason = "length"

    def check_invariants(self) -> None:
        """Computed tokens lie within the sequence and within its blocks."""
        assert 0 < self.num_prompt <= self.num_tokens
        assert 0 <= self.num_computed <= self.num_tokens
        assert len(set(self.block_ids)) == len(self.block_ids), "a block twice in one table"
