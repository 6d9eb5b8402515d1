"""What the engine has emitted and nobody has taken yet."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from worker.contract import TokenOutput
from worker.engine.sequence import Chunk, Sequence


class OutputBuffer:
    """Outputs since the last ones were taken, in the order in which they began; a sequence's tokens are in one.

    An error, or that a choice was aborted, stays by itself, behind the tokens. Tokens wait with their sequence: to make
    an output of each would take the host longer than all else that is done for it.
    """

    def __init__(self) -> None:
        self._entries: dict[Sequence | int, TokenOutput | None] = {}  # sequences with tokens; other outputs by numbers
        self._numbers = count()
        self._latest: list[Chunk] = []  # the sequences of which are among the entries
        self._prompt_logprobs: dict[Sequence, bytes] = {}
        self.has_due = False
        """Whether the first output of any choice is among them, or the last: somebody may wait for it."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, sequence: Sequence, logprobs: bytes | None = None) -> None:
        """A sequence has another token, or several, and may have ended with it."""
        self._entries[sequence] = None
        if logprobs is not None:
            sequence.unsent_logprobs.append(logprobs)
        if sequence.prompt_logprobs is not None:
            self._prompt_logprobs[sequence] = sequence.take_prompt_logprobs()
        if _is_due(sequence):
            self.has_due = True

    def add_all(self, chunks: list[Chunk]) -> None:
        """Those sequences of a step that have not ended have another token; the same list is of the same sequences."""
        if chunks is not self._latest:
            live = [sequence for sequence, _, _ in chunks if sequence.finish_reason is None]
            self._entries.update(dict.fromkeys(live))
            self._latest = chunks

    def answer(self, outputs: Iterable[TokenOutput]) -> None:
        """Last outputs of choices, without tokens."""
        for output in outputs:
            self._entries[next(self._numbers)] = output
            self.has_due = True

    def take_all(self) -> list[TokenOutput]:
        """All of it."""
        entries, self._entries = self._entries, {}
        self._latest, self.has_due = [], False
        return self._outputs(entries)

    def take_due(self) -> list[TokenOutput]:
        """What there is of choices that have ended, and of those of which nothing was taken yet; the others' stays."""
        entries, self._entries = self._entries, {}
        self._latest, self.has_due = [], False
        due: dict[Sequence | int, TokenOutput | None] = {}
        for key, output in entries.items():
            (due if isinstance(key, int) or _is_due(key) else self._entries)[key] = output
        return self._outputs(due)

    def _outputs(self, entries: dict[Sequence | int, TokenOutput | None]) -> list[TokenOutput]:
        outputs = [output if isinstance(key, int) else self._output(key) for key, output in entries.items()]
        return [output for output in outputs if output is not None]

    def _output(self, sequence: Sequence) -> TokenOutput | None:
        """None if it ended before it had another token."""
        ids = tuple(sequence.token_ids[sequence.num_sent :])
        if not ids:
            return None
        sequence.num_sent += len(ids)
        logprobs = None
        if sequence.unsent_logprobs:
            logprobs = b"".join(sequence.unsent_logprobs)
            sequence.unsent_logprobs.clear()
        ends = sequence.finish_reason in ("stop", "length")  # else an output without tokens says so
        return TokenOutput(
            sequence.request_id,
            sequence.choice,
            ids,
            sequence.finish_reason if ends else None,
            logprobs,
            usage=sequence.usage if ends else None,
            prompt_logprobs=self._prompt_logprobs.pop(sequence, None) if self._prompt_logprobs else None,
            cached_tokens=sequence.num_cached or 0,
        )


def _is_due(sequence: Sequence) -> bool:
    """Whether what there is of it is its first output, or its last."""
    return sequence.finish_reason is not None or sequence.num_sent == sequence.num_prompt
