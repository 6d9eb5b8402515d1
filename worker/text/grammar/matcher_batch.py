"""The grammars of many answers at once, on threads that need no interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, cast

import numpy as np
from llguidance import LLExecutor, LLMatcher

from orcd.errors import OrcdError
from worker.engine.token_constraint import Drawn, MaskRow, take_alone

if TYPE_CHECKING:
    from worker.text.grammar.document_places import DocumentPlaces, Place
    from worker.text.grammar.lexers import Lexer
    from worker.text.grammar.token_matcher import TokenMatcher

MAX_THREADS = 16
LEAST_TAKEN = 8
"""Fewer tokens are taken sooner than a thread wakes up."""


def num_threads() -> int:
    """Threads for grammars in the engine's process: the rest of the cores is for what else works for answers."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) * 3 // 4))


def too_complex() -> OrcdError:
    """What is wrong where a mask cannot be computed."""
    return OrcdError("the grammar of this request became too complex for the answer")


class MatcherBatch:
    """Writes the masks of a step, and takes its tokens: a `worker.engine.token_constraint.ConstraintBatch`.

    What a row needs of Python is done here, one row after the other; all rows then share the threads. Those with the
    same lexer stand together, as they wait for each other.
    """

    def __init__(self, num_threads: int = 1) -> None:
        """The threads start with the first step."""
        self.num_threads = num_threads
        self._executor: LLExecutor | None = None

    def write_masks(self, rows: Sequence[MaskRow], masks: memoryview) -> dict[int, Exception]:
        """See `ConstraintBatch`; all ``rows`` are of `TokenMatcher`."""
        array = np.asarray(masks)
        errors: dict[int, Exception] = {}
        unknown: list[tuple[DocumentPlaces, Place, int]] = []
        by_lexer: dict[Lexer, list[tuple[LLMatcher, int]]] = {}
        matcher: TokenMatcher
        for matcher, num_left, row in cast("Sequence[tuple[TokenMatcher, int, int]]", rows):
            place = matcher.place
            try:
                token_id = matcher.forced_id(num_left)
                if token_id is not None:
                    array[row] = 0
                    array[row, token_id >> 5] = 1 << (token_id & 31)
                elif place is not None and place.mask is not None:
                    array[row] = place.mask
                else:
                    by_lexer.setdefault(matcher.lexer, []).append((matcher.state, row))
                    if matcher.places is not None and place is not None:
                        unknown.append((matcher.places, place, row))
            except Exception as error:
                errors[row] = error
        asked = list(chain.from_iterable(by_lexer.values()))
        if asked:
            address: int = array.ctypes.data
            self._threads().unsafe_compute_mask_ptr(asked, address, array.strides[0], array.shape[0])
        for state, row in asked:
            if state.is_error():
                errors[row] = too_complex()
        for places, place, row in unknown:
            if row not in errors:
                places.keep_mask(place, array[row])
        return errors

    def take(self, drawn: Sequence[Drawn]) -> list[int | Exception]:
        """See `ConstraintBatch`; all of ``drawn`` are of `TokenMatcher`."""
        taken: list[int | Exception] = [token_id for _, token_id, _ in drawn]
        matchers = enumerate(cast("Sequence[tuple[TokenMatcher, int, int]]", drawn))
        left = [
            (number, matcher, token_id, num_left)
            for number, (matcher, token_id, num_left) in matchers
            if not matcher.goes_on(token_id, num_left)
        ]
        if len(left) < LEAST_TAKEN:
            for number, *_ in left:
                taken[number] = take_alone(drawn[number])
            return taken
        by_lexer: dict[Lexer, list[tuple[int, TokenMatcher, int, int]]] = {}
        for each in left:
            number, matcher, _, num_left = each
            try:
                matcher.prepare(num_left)
                by_lexer.setdefault(matcher.lexer, []).append(each)
            except Exception as error:
                taken[number] = error
        asked = list(chain.from_iterable(by_lexer.values()))
        states = [(matcher.state, token_id) for _, matcher, token_id, _ in asked]
        is_taken = self._threads().consume_token_par(states) if states else []
        for (number, matcher, token_id, num_left), is_right in zip(asked, is_taken, strict=True):
            try:
                taken[number] = matcher.settle(token_id, num_left, is_right=is_right)
            except Exception as error:
                taken[number] = error
        return taken

    def _threads(self) -> LLExecutor:
        if self._executor is None:
            self._executor = LLExecutor(self.num_threads)
        return self._executor
