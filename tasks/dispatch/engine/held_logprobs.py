"""Log probabilities that an engine has reported, until the events and the result of their tokens are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import msgspec

from orcd.events import PackedLogprobs, TokenLogprob
from tasks.dispatch.engine.reported_logprobs import ReportedLogprobs
from tasks.dispatch.prompt_encoder import Prompt
from worker import contract


class LogprobFields(TypedDict, total=False):
    """Fields of an `orcd.events.Token`."""

    logprobs: list[TokenLogprob]
    packed_logprobs: PackedLogprobs
    prompt_logprobs: list[TokenLogprob | None]
    packed_prompt_logprobs: PackedLogprobs
    prompt_start: bytes


class HeldLogprobs:
    """Those of one choice, in the form in which the engine reports them."""

    def __init__(self, prompt: Prompt, *, packs: bool) -> None:
        """With ``packs`` events have them packed, and results have them from `taken`."""
        self._prompt = prompt
        self._num_top = prompt.sampling.logprobs or 0
        self._packs = packs
        self._held = b""
        self._held_of_prompt: bytes | None = None
        self._taken: list[bytes] = []
        self.of_prompt: list[TokenLogprob | None] | None = None
        """Those of the prompt, as results have them, once they were taken."""

    def forget_held(self) -> None:
        """Of tokens that were not taken: they are drawn again."""
        self._held = b""
        self._held_of_prompt = None

    def add(self, output: contract.TokenOutput) -> None:
        """What came with ``output``, if the request asked for any."""
        if output.logprobs is not None:
            self._held += output.logprobs
        if output.prompt_logprobs is not None:
            self._held_of_prompt = output.prompt_logprobs

    def take(self, ids: Sequence[int]) -> LogprobFields:
        """Those of the next tokens, which are ``ids``, and, with the first of them, of the prompt."""
        fields: LogprobFields = {}
        if self._held:
            size = len(ids) * contract.logprob_record_bytes(self._num_top)
            records, self._held = self._held[:size], self._held[size:]
            reported = ReportedLogprobs(ids, self._num_top, records, self._prompt.spellings)
            if self._packs:
                self._taken.append(records)
                fields["packed_logprobs"] = reported.packed()
            else:
                fields["logprobs"] = list(reported)
        if self._held_of_prompt is not None:
            ids, num_top = self._prompt.ids[1:], self._prompt.sampling.prompt_logprobs or 0
            reported = ReportedLogprobs(ids, num_top, self._held_of_prompt, self._prompt.spellings)
            self._held_of_prompt = None
            self.of_prompt = [None, *reported]  # nothing comes before the first token
            [fields["prompt_start"]] = self._prompt.spellings.bytes_of(self._prompt.ids[:1])
            if self._packs:
                fields["packed_prompt_logprobs"] = msgspec.structs.replace(reported.packed(), ids=ids)
            else:
                fields["prompt_logprobs"] = self.of_prompt
        return fields

    def taken(self, ids: Sequence[int]) -> ReportedLogprobs | None:
        """Those of all tokens that were taken packed, the last of ``ids``; None if there are none."""
        if not self._taken:
            return None
        records = b"".join(self._taken)
        num_tokens = len(records) // contract.logprob_record_bytes(self._num_top)
        return ReportedLogprobs(ids[-num_tokens:], self._num_top, records, self._prompt.spellings)
