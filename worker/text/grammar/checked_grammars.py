"""What was said of grammars, so that equal ones are checked once."""

from __future__ import annotations

from collections import OrderedDict

from orcd.errors import InvalidRequest
from worker.text.process.text_process import TextProcess

MAX_KNOWN = 256


class CheckedGrammars:
    """The answers of a `TextProcess` about the last `MAX_KNOWN` grammars. `check` is for one thread at a time."""

    def __init__(self, process: TextProcess) -> None:
        self._process = process
        self._known: OrderedDict[str, int | InvalidRequest | None] = OrderedDict()

    def known(self, grammar: str) -> int | None:
        """What `check` has answered. Raises KeyError where it was not asked lately; any thread may call it."""
        answer = self._known[grammar]
        if isinstance(answer, InvalidRequest):
            raise InvalidRequest(answer.message)
        return answer

    def check(self, grammar: str) -> int | None:
        """With how many tokens a document can be written, None where it may end unfinished. May take seconds.

        Raises `InvalidRequest` for a grammar that cannot be used, or the error of the process.
        """
        if grammar not in self._known:
            try:
                self._known[grammar] = self._process.check_grammar(grammar)
            except InvalidRequest as error:
                self._known[grammar] = error
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return self.known(grammar)
