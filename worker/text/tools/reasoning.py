"""Which texts models put around what they think before they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worker.text.tokenizer import Tokenizer

_MAX_HEADER = 4096
"""Tokens at the end of a prompt, behind its last control token, in which reasoning may have been opened."""


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """Reasoning stands between ``open`` and ``close``, at the beginning of an answer.

    Of ``open`` the last ``label`` is never a token of its own.
    """

    open: str
    close: str
    label: str = ""

    @property
    def markers(self) -> tuple[str, str]:
        """The texts that stand for themselves; in some vocabularies they are control tokens."""
        return self.open.removesuffix(self.label), self.close

    def is_open(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt ends within reasoning, as the template or the message that goes on has opened it."""
        header = []
        for token_id in reversed(prompt_ids[-_MAX_HEADER:]):
            text = tokenizer.token_text(token_id)
            if tokenizer.is_special(token_id) and text not in self.markers:
                break
            header.append(token_id)
        spelt = tokenizer.decode(header[::-1])
        return spelt.rfind(self.open) > spelt.rfind(self.close)


_TAGS = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<|channel>thought", "<channel|>", label="thought"),  # Gemma 4
)


def tags_of(template: str) -> ReasoningTags | None:
    """Those that the source of a chat template writes, or looks for in earlier answers."""
    return next((tags for tags in _TAGS if tags.close in template), None)
