"""What one client saw of one job, and what was wrong with it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from orcd.events import Event, Token, state_after
from orcd.result import Choice, fold

Answer = tuple[Choice, ...]
"""What a request gives when it runs alone: a choice each."""


@dataclass(slots=True)
class Seen:
    """Times are of `time.monotonic`, which all processes of a machine share.

    Redis took its job between ``asked_s``, when it was last submitted, and ``submitted_s``, when that was answered.
    ``problem`` is "wrong" (another text, other ids, a hole), "doubled" (a token index twice), "lost" (no end in time)
    or "hung" (the client itself did not come back), and ``detail`` says more. ``error`` is the code that the job ended
    with, unless it succeeded. ``may_fail`` has the codes that this client must expect, as it cancels, for example.
    ``log_problem`` is what is wrong with the job's log in Redis.
    """

    kind: str
    model: str
    job_id: str
    asked_s: float = 0.0
    submitted_s: float = 0.0
    ended_s: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    num_jobs: int = 1
    problem: str = ""
    detail: str = ""
    error: str = ""
    log_problem: str = ""
    may_fail: tuple[str, ...] = ()

    def blame(self, problem: str, detail: str) -> None:
        """Note a problem, unless one was noted before."""
        if not self.problem:
            self.problem, self.detail = problem, detail

    def compare(self, found: Answer, expected: Answer) -> None:
        """A whole answer, as to its texts, ids, log probabilities and finish reasons."""
        if found != expected:
            self.blame("wrong", _difference(found, expected))

    def compare_begin(self, found: Answer, expected: Answer) -> None:
        """The answer of a job that did not succeed: how far it came must be right."""
        for index, choice in enumerate(found):
            whole = expected[index] if index < len(expected) else Choice()
            is_begin = whole.token_ids[: len(choice.token_ids)] == choice.token_ids
            if not is_begin or not whole.text.startswith(choice.text):
                self.blame("wrong", f"choice {index} does not begin as it should: {_shown(choice)}, {_shown(whole)}")

    def compare_text(self, text: str, expected: Answer) -> None:
        """All that a stream of text gives."""
        if text != expected[0].text:
            self.blame("wrong", f"text {text[-80:]!r}, not {expected[0].text[-80:]!r}")

    def check_events(self, events: list[Event], expected: Answer, from_token: int = 0) -> None:
        """The events of a job from the token index ``from_token`` + 1 of every choice on."""
        counts: defaultdict[int, int] = defaultdict(lambda: from_token)
        for number, event in enumerate(events):
            if state_after(event) and number < len(events) - 1:
                self.blame("doubled", "something follows the terminal event")
            if isinstance(event, Token) and event.ids:
                if event.i != counts[event.choice] + 1:
                    problem = "doubled" if event.i <= counts[event.choice] else "wrong"
                    self.blame(problem, f"choice {event.choice}: token {event.i} after {counts[event.choice]} tokens")
                counts[event.choice] += len(event.ids)
        if not events or not state_after(events[-1]):
            self.blame("lost", "no terminal event")
            return
        result = fold(self.job_id, events)
        self.error = result.error.code if result.error else ""
        if from_token:
            self._compare_end(tuple(result.choices), expected, from_token)
        elif self.error:
            self.compare_begin(tuple(result.choices), expected)
        else:
            self.compare(tuple(result.choices), expected)

    def _compare_end(self, found: Answer, expected: Answer, from_token: int) -> None:
        for index, whole in enumerate(expected):
            choice = found[index] if index < len(found) else Choice()
            ids = whole.token_ids[from_token:]
            if self.error:
                ids = ids[: len(choice.token_ids)]
            if choice.token_ids != ids or (not self.error and not whole.text.endswith(choice.text)):
                self.blame("wrong", f"choice {index} from {from_token} on: {_shown(choice)}, {_shown(whole)}")


def _difference(found: Answer, expected: Answer) -> str:
    if len(found) != len(expected):
        return f"{len(found)} choices, not {len(expected)}"
    index = next(index for index, choice in enumerate(found) if choice != expected[index])
    return f"choice {index}: {_shown(found[index])}, not {_shown(expected[index])}"


def _shown(choice: Choice) -> str:
    return f"{len(choice.token_ids)} ids ..{choice.token_ids[-6:]} {choice.text[-40:]!r} {choice.finish_reason}"
