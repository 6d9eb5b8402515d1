"""Makes the sequences of a request: one for each of its choices."""

from __future__ import annotations

from worker.contract import Add, Choice, Sampling
from worker.engine.logits.bad_words import BadWords
from worker.engine.logits.token_masks import constraint_error
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import TokenConstraint
from worker.engine.validation import validate_add


class SequenceBuilder:
    """Knows an engine's limits, which a request must keep to."""

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        cache_tokens: int,
        recompute_at: int | None,
        prefix_cache: bool,
    ) -> None:
        """``recompute_at``: see `worker.model.registry.Model`. ``prefix_cache``: requests share equal prefixes."""
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._cache_tokens = cache_tokens
        self._recompute_at = recompute_at
        self._prefix_cache = prefix_cache

    @property
    def max_sequence_tokens(self) -> int:
        """Most tokens that prompt and output of one choice can have together."""
        return min(self._context_length, self._cache_tokens)

    def build(self, add: Add, constraint: TokenConstraint | None) -> list[Sequence]:
        """The sequences of a request; one has ended already if its earlier owner emitted everything but the end.

        ``constraint`` is the grammar's, of which each has a copy. Raises what `validate_add` does, and `OrcdError` if
        the constraint fails.
        """
        packed_ids = validate_add(
            add, vocab_size=self._vocab_size, context_length=self._context_length, cache_tokens=self._cache_tokens
        )
        assert constraint is not None or not add.grammar, "a grammar that nobody has compiled"
        whole = self._with_bad_words(add.sampling, constraint)
        sequences = [self._sequence(add, choice, whole, packed_ids) for choice in add.choices]
        live = [sequence for sequence in sequences if sequence.finish_reason is None]
        for sequence in live[1:]:
            sequence.leader = live[0]
        if live and add.sampling.prompt_logprobs is not None:
            live[0].prompt_logprobs = bytearray()
        return sequences

    def hash_root(self, request_id: str, num_tokens: int) -> bytes:
        """Who shares blocks: all requests, or only the choices of one.

        Sequences that the model treats as short never share with those it treats as long (`Model.recompute_at`).
        """
        length = "short" if self._recompute_at is None or num_tokens <= self._recompute_at else "long"
        owner = "" if self._prefix_cache else request_id
        return f"{length}:{owner}".encode()

    def _with_bad_words(self, sampling: Sampling, grammar: TokenConstraint | None) -> TokenConstraint | None:
        """The constraint that a request has; without a grammar, words of one token need none: they are biases."""
        words = sampling.bad_words
        if words and (grammar is not None or max(map(len, words)) > 1):
            return BadWords(words, grammar, vocab_size=self._vocab_size)
        return grammar

    def _sequence(self, add: Add, choice: Choice, constraint: TokenConstraint | None, packed_ids: bytes) -> Sequence:
        num_tokens = len(add.prompt_ids) + len(choice.output_ids)
        max_output = min(add.sampling.max_tokens, self.max_sequence_tokens - len(add.prompt_ids))
        sequence = Sequence(
            request_id=add.request_id,
            choice=choice.index,
            sampling=add.sampling,
            priority=add.priority,
            token_ids=[*add.prompt_ids, *choice.output_ids],
            num_prompt=len(add.prompt_ids),
            max_output=max_output,
            packed_ids=packed_ids,
            hash_root=self.hash_root(add.request_id, num_tokens),
            constraint=None if constraint is None else _copy(constraint, choice, max_output),
        )
        sequence.update_finish_reason()
        return sequence


def _copy(constraint: TokenConstraint, choice: Choice, max_output: int) -> TokenConstraint:
    """A constraint of the choice's own, which has taken its output."""
    try:
        own = constraint.copy()
        if choice.output_ids:
            own.restore(choice.output_ids, max_output)
    except Exception as error:
        raise constraint_error(error) from error
    return own
