"""How a document that has begun is closed with few tokens.

A search over llguidance's matcher: it follows what the grammar forces, and where there is a choice takes what ends
strings, objects and arrays first. Where that leads nowhere, as in a string that must have an @ somewhere, it tries
characters that it has not used. It finds a closing, not always the shortest one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from worker.text.grammar.alphabet import Alphabet
from worker.text.grammar.known_closing import KnownClosing, KnownClosings, starts_of

LIMITS = (24, 96, 384, 1536)
"""A search looks for a closing of at most so many tokens, then for a longer one."""
VISITS_PER_TOKEN = 2
"""States of the grammar that it looks at for each of them; a state takes about 0.1 ms."""
MAX_LOOKED_AHEAD = 64
"""Where so many tokens of one byte or fewer may come next, this is no place in the text of a string."""
MOST_ENDED = 3
"""Steps from a state of the grammar to one in which an earlier closing is tried."""
_OPENS = frozenset([b"{", b"[", b'"'])


class Closing:
    """Searches closings for the grammars of one vocabulary and, of a JSON schema, the names of required properties.

    What is chosen depends on the state of the matcher alone.
    """

    def __init__(self, alphabet: Alphabet, required: Set[bytes] = frozenset(), suffixes: Sequence[bytes] = ()) -> None:
        """``suffixes`` end texts that may go on with anything else."""
        self._alphabet = alphabet
        self._required = required
        self._suffixes = suffixes

    def search(self, matcher: LLMatcher, most: int = LIMITS[-1]) -> list[int] | None:
        """Tokens after which the document is whole, none if it is already; None where no closing is found.

        One of more than ``most`` tokens is of no use; it may be found all the same. The matcher is as it was
        afterwards.
        """
        for limit in LIMITS:
            found = self._search(matcher, limit)
            if found is None:
                found = self._search(matcher, limit, varied=True)
            if found is not None or limit >= most:
                return found
        return None

    def renewed(self, matcher: LLMatcher, earlier: tuple[int, ...], whole: tuple[int, ...] = ()) -> list[int] | None:
        """A closing made of one that was found some tokens ago, None if that cannot be told in a moment.

        Or of a ``whole`` document, where a value has begun that is in it, too. What has begun since is ended first:
        half a character, an escape, a name. The matcher is as it was afterwards.
        """
        alphabet = self._alphabet
        passed = starts_of(earlier)
        in_string = earlier[:1] == (alphabet.quote_id,)  # where all of it is tried first
        steps: list[list[int]] = []
        found = self._ended(matcher, earlier, (0, *passed) if in_string else passed, steps)
        if found is None and whole:
            opens = [at for at, token_id in enumerate(whole) if alphabet.texts[token_id][:1] in _OPENS]
            found = self._ended(matcher, whole, opens[::-1], steps)
        return found

    def _ended(
        self, matcher: LLMatcher, closing: tuple[int, ...], starts: Sequence[int], steps: list[list[int]]
    ) -> list[int] | None:
        """What ends what has begun, and then a closing from one of ``starts`` on; the first one that is found.

        ``steps`` that end something are the same for any closing: those that are missing are added.
        """
        path: list[int] = []
        found = None
        for number in range(MOST_ENDED + 1):
            found = [] if matcher.is_accepting() else self._end_of(matcher, closing, starts)
            if found is not None:
                break
            if number == len(steps):
                steps.append(self._step(matcher, path))
            matcher.consume_tokens(steps[number])
            path += steps[number]
        matcher.rollback(len(path))
        return None if found is None else path + found

    def _step(self, matcher: LLMatcher, path: list[int]) -> list[int]:
        """The tokens that must come next, or one that ends something, else the one that a search tries first."""
        forced = matcher.compute_ff_tokens()
        if forced:
            return forced
        # A mask would say what may come, but takes longer than to try these.
        step = next(([each] for each in self._alphabet.ending_ids if matcher.validate_tokens([each])), [])
        return step or self._ranked(matcher, path)[:1]

    def _end_of(self, matcher: LLMatcher, closing: tuple[int, ...], starts: Sequence[int]) -> list[int] | None:
        refused: set[int] = set()  # as the first token of an end
        for start in starts:
            if closing[start] in refused:
                continue
            # The last token may come where the document is whole, and only there.
            end = [*closing[start:], self._alphabet.end_id]
            num_right = matcher.validate_tokens(end)
            if num_right == len(end):
                return end[:-1]
            if not num_right:
                refused.add(closing[start])
        return None

    def _search(self, matcher: LLMatcher, limit: int, *, varied: bool = False) -> list[int] | None:
        path: list[int] = []
        choices: list[tuple[Iterator[int], int]] = []  # what is left to try, and the length of the path before it
        start, visits_left = 0, VISITS_PER_TOKEN * limit
        while True:
            forced = matcher.compute_ff_tokens()
            if forced:
                matcher.consume_tokens(forced)
                path += forced
                start = len(path)  # what is chosen behind it may be the text of a string
            if matcher.is_accepting() and len(path) <= limit:
                matcher.rollback(len(path))
                return path
            if len(path) < limit:
                ranked = self._ranked(matcher, path[start:])
                choices.append((iter(self._varied(ranked, path) if varied else ranked), len(path)))
            while True:
                if not choices or not visits_left:
                    matcher.rollback(len(path))
                    return None
                left, length = choices[-1]
                token_id = next(left, None)
                if token_id is not None:
                    break
                choices.pop()
            matcher.rollback(len(path) - length)
            del path[length:]
            start = min(start, length)
            matcher.consume_token(token_id)
            path.append(token_id)
            visits_left -= 1

    def _ranked(self, matcher: LLMatcher, path: list[int]) -> list[int]:
        """The tokens to try next, the best one first; ``path`` are those that were chosen before."""
        alphabet = self._alphabet
        allowed = alphabet.allowed(matcher.compute_bitmask())
        if len(allowed) > MAX_LOOKED_AHEAD:  # in a string that may go on with anything: its end comes first
            suffix_id = self._next_of_suffix(path)
            if suffix_id is not None and allowed[0] not in alphabet.control_ids:
                return [suffix_id, *allowed]
            return [alphabet.quote_id, *allowed] if alphabet.quote_id in allowed[:4] else allowed
        if path[-1:] == allowed[:1] == [alphabet.zero_id]:  # with zeros a number would never get above 0
            allowed = [*allowed[1:], alphabet.zero_id]
        if not self._required or len(allowed) < 2 or alphabet.texts[allowed[0]] in (b"}", b"]", b'"'):
            return allowed
        if allowed[0] in alphabet.control_ids:
            return allowed
        return sorted(allowed, key=lambda token_id: self._rank(matcher, token_id))

    def _next_of_suffix(self, path: list[int]) -> int | None:
        """The token that goes on with the first suffix that the text does not have; None where it has all."""
        text = b"".join(self._alphabet.texts[token_id] for token_id in path)
        suffix = next((suffix for suffix in self._suffixes if suffix not in text), None)
        if suffix is None:
            return None
        length = max(length for length in range(len(suffix)) if text.endswith(suffix[:length]))
        return self._alphabet.of_byte(suffix[length])

    def _varied(self, ranked: list[int], path: list[int]) -> list[int]:
        """What ends something first, then what the path has least often; joints are wanted more than once."""
        alphabet = self._alphabet
        is_in_text = len(ranked) > MAX_LOOKED_AHEAD
        ends = alphabet.control_ids | {alphabet.quote_id} if is_in_text else alphabet.end_ids
        uses = Counter(path)
        uses.subtract(dict.fromkeys(self._alphabet.joint_ids, 2))
        return sorted(ranked, key=lambda each: (each not in ends, uses[each]))

    def _rank(self, matcher: LLMatcher, token_id: int) -> int:
        """0 for a token that leads to the name of a property that some object must have, 2 for another name."""
        matcher.consume_token(token_id)
        text = self._alphabet.texts[token_id] + matcher.compute_ff_bytes()
        matcher.rollback(1)
        name, end, _ = text.partition(b'"')
        if not end:
            return 1
        return 0 if any(each.endswith(name) for each in self._required) else 2


@dataclass(frozen=True, slots=True)
class ClosingRule:
    """How a document is kept closable.

    A token of a kind lengthens the shortest closing by ``growth[kind]`` tokens at most, and all tokens since a closing
    was known, besides, by no more than ``margin``.
    """

    closing: Closing
    closings: KnownClosings
    alphabet: Alphabet
    growth: Sequence[float]
    margin: float
    """For what is unfinished, and for a closing that is found and is not the shortest one."""

    # Where a mask was computed behind tokens that are then taken back, llguidance may go on with a wrong one: so they
    # search behind copies.

    def renewed(self, state: LLMatcher, earlier: KnownClosing, whole: tuple[int, ...]) -> KnownClosing | None:
        """See `Closing.renewed`."""
        found = self.closing.renewed(state.deep_copy(), earlier.token_ids, whole)
        return None if found is None else self.closings.of(found)

    def searched(self, state: LLMatcher, most: int) -> KnownClosing | None:
        """See `Closing.search`."""
        found = self.closing.search(state.deep_copy(), most)
        return None if found is None else self.closings.of(found)


class AnswerClosing:
    """What is known of how the document of one answer can be closed."""

    __slots__ = ("_bound", "_earlier", "_margin", "_plan", "_rule")

    def __init__(self, rule: ClosingRule | None) -> None:
        """None: nobody wants to know that."""
        self._rule = rule
        self._plan: KnownClosing | None = None  # a closing from here, if one is known
        self._earlier = rule.closings.of(()) if rule else None  # what may be left of the one that was known last
        # Of the tokens that the shortest one takes, but for the margin.
        self._bound, self._margin = (math.inf, rule.margin) if rule else (-math.inf, 0.0)

    def _has_room(self, num_left: int) -> bool:
        """Whether the document can be closed with fewer tokens than are left."""
        return self._bound + self._margin < num_left if self._plan is None else self._plan.length < num_left

    def _closing_behind(
        self, token_id: int, *, is_forced: bool, is_in_text: bool
    ) -> tuple[KnownClosing | None, KnownClosing, float]:
        """A closing behind a token, if that is known, else an earlier one, and the bound; nothing changes.

        ``is_in_text``: the token goes on with a string that may have any text.
        """
        plan, earlier, bound, rule = self._plan, self._earlier, self._bound, self._rule
        assert rule is not None and earlier is not None, "a closing that nobody wants"
        if is_in_text and (plan is None or plan.first_id == rule.alphabet.quote_id):
            return plan, earlier, bound  # what closes a string that may have any text is the same
        if plan is not None:
            left = plan.remainder(token_id)
            if left is not None:
                return left, earlier, left.length
            if plan.length:
                earlier = plan
        # Any closing began with what is forced.
        bound += -1 if is_forced else rule.growth[rule.alphabet.kinds[token_id]]
        return None, earlier.likely_remainder(token_id), bound


def required_names(schema: Any) -> Set[bytes]:
    """The names of all properties that a JSON schema requires somewhere, as they are written in a document."""
    names: set[bytes] = set()
    left = [schema]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            required = each.get("required")
            if isinstance(required, list):
                names |= {
                    json.dumps(name, ensure_ascii=False)[1:-1].encode() for name in required if isinstance(name, str)
                }
            left += each.values()
        elif isinstance(each, list):
            left += each
    return names
