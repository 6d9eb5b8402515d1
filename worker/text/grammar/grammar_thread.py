"""A thread that compiles grammars, so that requests without one do not wait for that."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from orcd.errors import OrcdError, places
from worker.engine.token_constraint import TokenConstraint
from worker.text import threads

if TYPE_CHECKING:
    from worker.text.grammar.grammar_compiler import GrammarCompiler

MAX_KEPT = 256
"""Compiled grammars that are kept for requests to come."""


def late_compiler(metadata: Mapping[str, Any], tokenizer: str, vocab_size: int) -> Callable[[str], TokenConstraint]:
    """What compiles grammars for a model with ``vocab_size`` logits.

    Its vocabulary is in its ``metadata``, or in a file ``tokenizer`` instead. That and llguidance are loaded with the
    first grammar: an engine does not need them to start.
    """
    compilers: list[GrammarCompiler] = []

    def compile_grammar(grammar: str) -> TokenConstraint:
        if not compilers:
            from worker.text.grammar.grammar_compiler import GrammarCompiler
            from worker.text.grammar.matcher_batch import num_threads
            from worker.text.tokenizer import of_model

            compilers.append(GrammarCompiler(of_model(metadata, tokenizer), vocab_size, num_threads=num_threads()))
        return compilers[0].compile(grammar)

    return compile_grammar


class GrammarThread:
    """Compiles one grammar after the other. Its methods are for one other thread, which asks now and then what is done.

    The thread starts with the first grammar, and ends with the process.
    """

    def __init__(self, compile_grammar: Callable[[str], TokenConstraint]) -> None:
        """``compile_grammar`` is called on the thread; what it raises is an error of the grammar."""
        self._compile_grammar = compile_grammar
        self._asked: SimpleQueue[str] = SimpleQueue()
        self._done: SimpleQueue[tuple[str, TokenConstraint | OrcdError]] = SimpleQueue()
        self._kept: OrderedDict[str, TokenConstraint] = OrderedDict()  # the one used last is the last
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)

    def find(self, grammar: str) -> TokenConstraint | None:
        """What a grammar was compiled to lately, to be copied for each use."""
        constraint = self._kept.get(grammar)
        if constraint is not None:
            self._kept.move_to_end(grammar)
        return constraint

    def compile(self, grammar: str) -> None:
        """Have a grammar compiled, after those that were asked for before; without a thread for it that is an error."""
        if not self._thread.ident:
            try:
                threads.start(self._thread)
            except OSError as error:
                problem = OrcdError(f"the thread that compiles grammars cannot be started ({error.strerror})")
                self._done.put((grammar, problem))
                return
        self._asked.put(grammar)

    def take_done(self) -> list[tuple[str, TokenConstraint | OrcdError]]:
        """The grammars that were compiled since the last call, each with its constraint or with what is wrong with it.

        Raises `OrcdError` if the thread has died.
        """
        done: list[tuple[str, TokenConstraint | OrcdError]] = []
        while True:
            try:
                grammar, outcome = self._done.get_nowait()
            except Empty:
                break
            if not isinstance(outcome, OrcdError):
                self._kept[grammar] = outcome
                if len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            done.append((grammar, outcome))
        if self._death is not None:
            name, where = type(self._death).__name__, places(self._death)[-1]
            raise OrcdError(f"the thread that compiles grammars died of {name} at {where}")
        return done

    def _run(self) -> None:
        try:
            while True:
                grammar = self._asked.get()
                self._done.put((grammar, self._outcome(grammar)))
        except BaseException as error:
            self._death = error

    def _outcome(self, grammar: str) -> TokenConstraint | OrcdError:
        try:
            return self._compile_grammar(grammar)
        except OrcdError as error:
            return error
        except Exception as error:
            return OrcdError(f"the grammar could not be compiled: {type(error).__name__} at {places(error)[-1]}")
