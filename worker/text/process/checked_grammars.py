"""What was said of grammars, so that equal ones are checked once."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from threading import Lock

from orcd.errors import InvalidRequest
from worker.text.process.text_process import TextProcess

MAX_KNOWN = 256


class CheckedGrammars:
    """What processes have answered about the last `MAX_KNOWN` grammars. Any thread may call its methods."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[str, int | InvalidRequest | None] = OrderedDict()

    def known(self, grammar: str) -> int | None:
        """What `check` has answered. Raises KeyError where it was not asked lately."""
        answer = self._known[grammar]
        if isinstance(answer, InvalidRequest):
            raise InvalidRequest(answer.message)
        return answer

    def check(self, grammar: str, process: TextProcess) -> int | None:
        """With how many tokens a document can be written, None where it may end unfinished. May take seconds.

        ``process`` is the calling thread's own.

        Raises `InvalidRequest` for a grammar that cannot be used, or the error of the process.
        """
        with suppress(KeyError):
            return self.known(grammar)
        answer: int | InvalidRequest | None
        try:
            answer = process.check_grammar(grammar)
        except InvalidRequest as error:
            answer = error
        with self._lock:
            self._known[grammar] = answer
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        if isinstance(answer, InvalidRequest):
            raise InvalidRequest(answer.message)
        return answer
