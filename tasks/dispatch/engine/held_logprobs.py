"""Log probabilities that an engine has reported, until the events of their tokens are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orcd.events import TokenLogprob
from worker import contract


class HeldLogprobs:
    """Those of one choice, as events have them: with the spelling of each token."""

    def __init__(self, prompt_ids: Sequence[int] = ()) -> None:
        self._prompt_ids = prompt_ids
        self._of_tokens: list[TokenLogprob] = []
        self._of_prompt: list[TokenLogprob | None] | None = None

    def add(self, output: contract.TokenOutput, pieces: Sequence[bytes]) -> None:
        """What came with ``output``, if the request asked for any; ``pieces`` are the bytes of each token by its id."""
        self._of_tokens += _spelt(output.ids, output.logprobs or (), pieces)
        if output.prompt_logprobs is not None:  # nothing comes before the first token, so that has none
            self._of_prompt = [None, *_spelt(self._prompt_ids[1:], output.prompt_logprobs, pieces)]

    def take(self, num_tokens: int) -> tuple[list[TokenLogprob] | None, list[TokenLogprob | None] | None]:
        """Those of the next ``num_tokens`` and, with the first of them, of the prompt; None instead of none."""
        taken, self._of_tokens = self._of_tokens[:num_tokens], self._of_tokens[num_tokens:]
        of_prompt, self._of_prompt = self._of_prompt, None
        return taken or None, of_prompt


def _spelt(
    token_ids: Iterable[int], logprobs: Iterable[contract.TokenLogprobs], pieces: Sequence[bytes]
) -> Iterable[TokenLogprob]:
    for token_id, each in zip(token_ids, logprobs, strict=False):
        known = (token_id, *each.top_ids)
        top = dict(zip(each.top_ids, each.top_logprobs, strict=True))
        try:
            spelling = dict(zip(known, map(pieces.__getitem__, known), strict=True))
        except IndexError:  # a padded model has more ids than its vocabulary
            spelling = {known_id: pieces[known_id] if known_id < len(pieces) else b"" for known_id in known}
        yield TokenLogprob(token_id, each.logprob, top, spelling)
