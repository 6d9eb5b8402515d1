"""The token ids of bad words: texts that an answer shall not have."""

from __future__ import annotations

from collections.abc import Iterable

from orcd.errors import InvalidRequest
from worker.text.tokenizer import Tokenizer


def bad_word_ids(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """What must not be drawn for each of ``words``: its ids at the start of a text, and those after a space.

    As in vLLM, space around neither counts: the second are left out where they begin with the same id as the first
    (the vocabulary has no token of a space and this word's beginning) or are another number of ids. A word that is
    nothing but space is taken as it is. Control tokens are found by their spelling. Raises `InvalidRequest` for a word
    without ids.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        text = word.lstrip() or word
        first, spaced = (
            tuple(tokenizer.encode(each, add_special=False, parse_special=True)) for each in (text, f" {text}")
        )
        if not first:
            raise InvalidRequest("bad_words: the model's vocabulary has no token for one of the words")
        found[first] = None
        if len(spaced) == len(first) and spaced[0] != first[0]:
            found[spaced] = None
    return tuple(found)
