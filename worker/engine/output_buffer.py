"""What the engine has emitted and nobody has taken yet."""

from __future__ import annotations

from collections.abc import Iterable

from worker.contract import TokenOutput
from worker.engine.sequence import Sequence


class OutputBuffer:
    """Outputs since the last ones were taken, in the order in which they began; a sequence's tokens are in one.

    An error, or that a choice was aborted, stays by itself, behind the tokens. Tokens wait with their sequence: to make
    an output of each would take the host longer than all else that is done for it.
    """

    def __init__(self) -> None:
        self._entries: list[Sequence | TokenOutput] = []
        self._prompt_logprobs: dict[Sequence, bytes] = {}
        self.has_final = False
        """Whether the last output of any choice is among them."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, sequence: Sequence, token_id: int, logprobs: bytes | None = None) -> None:
        """A sequence has another token, and may have ended with it."""
        unsent = sequence.unsent_ids
        if not unsent:
            self._entries.append(sequence)
        unsent.append(token_id)
        if logprobs is not None:
            sequence.unsent_logprobs.append(logprobs)
        if sequence.prompt_logprobs is not None:
            self._prompt_logprobs[sequence] = sequence.take_prompt_logprobs()
        if sequence.finish_reason is not None:
            self.has_final = True

    def answer(self, outputs: Iterable[TokenOutput]) -> None:
        """Last outputs of choices, without tokens."""
        for output in outputs:
            self._entries.append(output)
            self.has_final = True

    def take_all(self) -> list[TokenOutput]:
        """All of it."""
        entries, self._entries, self.has_final = self._entries, [], False
        return [self._output(entry) for entry in entries]

    def take_finished(self) -> list[TokenOutput]:
        """What there is of choices that have ended; the others' outputs stay."""
        entries, self._entries, self.has_final = self._entries, [], False
        finished = []
        for entry in entries:
            if entry.finish_reason is None:
                self._entries.append(entry)
            else:
                finished.append(self._output(entry))
        return finished

    def _output(self, entry: Sequence | TokenOutput) -> TokenOutput:
        if isinstance(entry, TokenOutput):
            return entry
        ids, entry.unsent_ids = tuple(entry.unsent_ids), []
        logprobs = None
        if entry.unsent_logprobs:
            logprobs, entry.unsent_logprobs = b"".join(entry.unsent_logprobs), []
        ends = entry.finish_reason in ("stop", "length")  # else an output without tokens says so
        return TokenOutput(
            entry.request_id,
            entry.choice,
            ids,
            entry.finish_reason if ends else None,
            logprobs,
            usage=entry.usage if ends else None,
            prompt_logprobs=self._prompt_logprobs.pop(entry, None) if self._prompt_logprobs else None,
            cached_tokens=entry.num_cached or 0,
        )
