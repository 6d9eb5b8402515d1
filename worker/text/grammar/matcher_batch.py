"""The grammars of many answers at once, on threads that need no interpreter lock."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from worker.engine.token_constraint import Asked, Drawn, TokenMask, take_alone
from worker.text.grammar.lexers import Lexer
from worker.text.grammar.places.place import Place
from worker.text.grammar.token_matcher import TokenMatcher, too_complex

MAX_THREADS = 16
LONG_S = 0.0005
"""Behind a mask that took longer than that the next one probably does, too, and no step waits for it."""
LEAST_TAKEN = 24
"""Fewer tokens are taken sooner than a thread wakes up: 5 us each, and up to 0.1 ms for that where cores are busy."""
LEAST_COMPUTED = 6
"""The same for masks: 60 us each."""


def num_threads() -> int:
    """Threads for grammars in the engine's process: the rest of the cores is for what else works for answers."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) * 3 // 4))


class MatcherBatch:
    """Knows the masks of a step, and takes its tokens: a `worker.engine.token_constraint.ConstraintBatch`.

    What a row needs of Python is done here, one row after the other; all rows then share the threads. Those with the
    same lexer stand together, as they wait for each other.
    """

    def __init__(self, vocab_size: int, num_threads: int = 1) -> None:
        """Of masks for ``vocab_size`` logits. The threads start with the first step."""
        self.num_threads = num_threads
        self.num_words = -(-vocab_size // 32)
        """Of a mask."""
        self._words = np.empty((0, self.num_words), np.uint32)  # of the masks that are computed together
        self._executor: LLExecutor | None = None
        self._late: ThreadPoolExecutor | None = None
        self._begun: WeakKeyDictionary[TokenMatcher, LateMask] = WeakKeyDictionary()

    def masks(self, asked: Sequence[Asked]) -> list[TokenMask | int | Exception]:
        """See `ConstraintBatch`; all that are ``asked`` are of `TokenMatcher`."""
        found: list[TokenMask | int | Exception | None]
        leaders: dict[Place | TokenMatcher, int] = {}  # whose mask is computed for all in their place
        others: list[int] = []
        matchers = cast("Sequence[tuple[TokenMatcher, int]]", asked)
        found = [matcher.told if matcher.told_left == num_left else None for matcher, num_left in matchers]
        for index in [index for index, mask in enumerate(found) if mask is None]:
            matcher, num_left = matchers[index]
            try:
                found[index] = matcher.known_mask(num_left)
            except Exception as error:
                found[index] = error
            if found[index] is None:
                place = matcher.place
                if leaders.setdefault(matcher if place is None else place, index) != index:
                    others.append(index)
        if leaders:
            self._compute(matchers, leaders.values(), found)
            for index in others:
                found[index] = matchers[index][0].known_mask(matchers[index][1])
            self._compute(matchers, [index for index in others if found[index] is None], found)
        return cast("list[TokenMask | int | Exception]", found)

    def _compute(
        self,
        matchers: Sequence[tuple[TokenMatcher, int]],
        indices: Collection[int],
        found: list[TokenMask | int | Exception | None],
    ) -> None:
        """Put the masks of some matchers into ``found``."""
        if self._words.shape[0] < len(indices):
            self._words = np.empty((len(indices), self.num_words), np.uint32)
        words, rows = self._words, {index: row for row, index in enumerate(indices)}
        by_lexer: dict[Lexer, list[tuple[LLMatcher, int]]] = {}
        for index, row in rows.items():
            matcher = matchers[index][0]
            try:
                by_lexer.setdefault(matcher.lexer, []).append((matcher.state, row))
            except Exception as error:
                found[index] = error
        states = list(chain.from_iterable(by_lexer.values()))
        address: int = words.ctypes.data
        if len(states) < LEAST_COMPUTED:
            for state, row in states:
                words[row] = 0
                state.unsafe_compute_mask_ptr(address + row * words.strides[0], words.strides[0])
        else:
            self._threads().unsafe_compute_mask_ptr(states, address, words.strides[0], words.shape[0])
        failed = {row for state, row in states if state.is_error()}
        for index, row in rows.items():
            if isinstance(found[index], Exception):
                continue
            places, place = matchers[index][0].places, matchers[index][0].place
            if row in failed:
                found[index] = too_complex()
            elif places is None or place is None:
                found[index] = TokenMask(words[row].tobytes())
            else:
                found[index] = places.keep_mask(place, words[row].tobytes())

    def take(self, drawn: Sequence[Drawn]) -> list[int | Exception]:
        """See `ConstraintBatch`; all of ``drawn`` are of `TokenMatcher`."""
        taken: list[int | Exception] = [token_id for _, token_id, _ in drawn]
        left: list[tuple[int, TokenMatcher, int, int]] = []
        for number, (matcher, token_id, num_left) in enumerate(cast("Sequence[tuple[TokenMatcher, int, int]]", drawn)):
            try:
                if not matcher.goes_on(token_id, num_left):
                    left.append((number, matcher, token_id, num_left))
            except Exception as error:
                taken[number] = error
        if len(left) < LEAST_TAKEN:
            for number, matcher, token_id, num_left in left:
                taken[number] = _taken(matcher, token_id, num_left)
            return taken
        by_lexer: dict[Lexer, list[tuple[int, LLMatcher]]] = {}
        for index, (number, matcher, _, num_left) in enumerate(left):
            try:
                matcher.prepare(num_left)
                by_lexer.setdefault(matcher.lexer, []).append((index, matcher.state))
            except Exception as error:
                taken[number] = error
        asked = list(chain.from_iterable(by_lexer.values()))
        states = [(state, left[index][2]) for index, state in asked]
        is_taken = self._threads().consume_token_par(states) if states else []
        for (index, _), is_right in zip(asked, is_taken, strict=True):
            number, matcher, token_id, num_left = left[index]
            try:
                taken[number] = matcher.settle(token_id, num_left, is_right=is_right)
            except Exception as error:
                taken[number] = error
        return taken

    def take_known(self, drawn: Sequence[Drawn]) -> list[int | Exception | None]:
        """See `ConstraintBatch`; the same holds."""
        taken: list[int | Exception | None] = []
        for matcher, token_id, num_left in cast("Sequence[tuple[TokenMatcher, int, int]]", drawn):
            try:
                taken.append(token_id if matcher.goes_on(token_id, num_left, and_is_ready=True) else None)
            except Exception as error:
                taken.append(error)
        return taken

    def take_unknown(self, drawn: Drawn, *, waits: bool) -> int | Exception | None:
        """See `ConstraintBatch`; the same holds. Only a mask is waited for where the last one took long."""
        matcher, _, num_left = cast("tuple[TokenMatcher, int, int]", drawn)
        begun = self._begun.get(matcher)
        if begun is None:
            taken = take_alone(drawn)
            if isinstance(taken, Exception) or matcher.is_complete:
                return taken
            try:
                if matcher.known_mask(num_left - 1) is not None:
                    return taken
                begun = LateMask(taken, matcher.state, np.zeros(self.num_words, np.uint32))
            except Exception:
                return taken  # who asks for the mask is told
            if matcher.mask_s < LONG_S:
                begun.compute()
            else:
                begun.computed = self._late_threads().submit(begun.compute)
                self._begun[matcher] = begun
        if begun.computed is not None:
            if not waits and not begun.computed.done():
                return None
            begun.computed.result()
            del self._begun[matcher]
        matcher.mask_s = begun.took_s
        if not begun.state.is_error():
            places, place, words = matcher.places, matcher.place, begun.words.tobytes()
            mask = TokenMask(words) if places is None or place is None else places.keep_mask(place, words)
            matcher.told, matcher.told_left = mask, num_left - 1
        return begun.token_id

    def _threads(self) -> LLExecutor:
        if self._executor is None:
            self._executor = LLExecutor(self.num_threads)
        return self._executor

    def _late_threads(self) -> ThreadPoolExecutor:
        if self._late is None:
            self._late = ThreadPoolExecutor(self.num_threads, "late-masks")
        return self._late


class LateMask:
    """A mask that is computed while steps go on without its answer."""

    def __init__(self, token_id: int, state: LLMatcher, words: NDArray[np.uint32]) -> None:
        """``token_id`` is the last one that ``state`` has taken; the mask comes to be in ``words``."""
        self.token_id = token_id
        self.state = state
        self.words = words
        self.took_s = 0.0
        self.computed: Future[None] | None = None

    def compute(self) -> None:
        """On any thread, mostly without the interpreter lock."""
        start = time.monotonic()
        self.state.unsafe_compute_mask_ptr(self.words.ctypes.data, self.words.nbytes)
        self.took_s = time.monotonic() - start


def _taken(matcher: TokenMatcher, token_id: int, num_left: int) -> int | Exception:
    """As `take_alone`, where `TokenMatcher.goes_on` is False."""
    try:
        matcher.prepare(num_left)
        return matcher.settle(token_id, num_left, is_right=matcher.state.consume_token(token_id))
    except Exception as error:
        return error
