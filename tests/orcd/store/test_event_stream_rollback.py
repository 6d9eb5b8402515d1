"""The reader of a job whose log is forgotten in part and written again, in other events or another order of choices."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.events import End, Event, Position, Started, Token, ToolCallDelta, encode_event
from orcd.result import fold
from orcd.status import Look
from orcd.store.event_stream import EventStream
from orcd.store.token_log import Entry

NUM_CHOICES = 2
NUM_TOKENS = 12


def token(choice: int, first: int, num_tokens: int) -> Token:
    """Tokens as every owner generates them."""
    numbers = range(first, first + num_tokens)
    return Token(
        "".join(f"{choice}.{number} " for number in numbers),
        first,
        [1000 * choice + number for number in numbers],
        choice,
        analysis="".join("?" * (number % 3) for number in numbers),
        tool_calls=[call_delta(number) for number in numbers],
    )


def call_delta(number: int) -> ToolCallDelta:
    """Every third token begins a call, and the others go on with its arguments."""
    index, place = divmod(number, 3)
    begun = {} if place else {"id": f"id{index}", "name": "f"}
    return ToolCallDelta(index, arguments="x" * (number % 4), **begun)


class Job:
    """A job's log, its owner and the channel, played by the test."""

    def __init__(self) -> None:
        self.log: list[tuple[Position, Event]] = []
        self.channel: list[Event] = []
        self.num_starts = 0

    def count(self, choice: int) -> int:
        return sum(len(event.ids) for _, event in self.log if isinstance(event, Token) and event.choice == choice)

    def write(self, event: Event) -> None:
        before = self.log[-1][0] if self.log else Position()
        self.log.append((before.after(len(event.ids) if isinstance(event, Token) else 0), event))
        self.channel.append(event)

    def generate(self, choice: int, num_tokens: int) -> None:
        first = self.count(choice) + 1
        if first <= NUM_TOKENS:
            self.write(token(choice, first, min(num_tokens, NUM_TOKENS - first + 1)))

    def start(self) -> None:
        self.num_starts += 1
        self.write(Started("j", "m", self.num_starts, 1))

    def roll_back(self, num_entries: int) -> None:
        del self.log[max(0, len(self.log) - num_entries) :]

    def entries(self, start: str) -> list[Entry]:
        first = Position.parse(start.removeprefix("(").encode())
        wanted = [(place, event) for place, event in self.log if place >= first]
        return [(place.text.encode(), {b"e": encode_event(event)}) for place, event in wanted]


class Reader:
    """Follows a job as the clients do."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stream = EventStream("j", 0, None, 10)
        self.seen: list[Event] = []

    def deliver(self) -> None:
        event = self.job.channel.pop(0)
        if not self.stream.ended:
            events = self.stream.received({"type": "message", "data": encode_event(event)})
            self.replay() if events is None else self.seen.extend(events)

    def replay(self) -> None:
        start = self.stream.log_start
        while start and not self.stream.ended:
            ended = bool(self.job.log) and isinstance(self.job.log[-1][1], End)
            look = Look("succeeded" if ended else "running", None, True, b"")
            events, start = self.stream.replayed(start, look, self.job.entries(start))
            self.seen += events

    def check(self) -> None:
        """Each choice's tokens, texts and indices are those of a job that was never forgotten."""
        for choice in range(NUM_CHOICES):
            tokens = [event for event in self.seen if isinstance(event, Token) and event.choice == choice]
            ids = [token_id for event in tokens for token_id in event.ids]
            whole = token(choice, 1, len(ids))
            assert ids == whole.ids
            assert "".join(event.t for event in tokens) == whole.t
            assert "".join(event.analysis for event in tokens) == whole.analysis
            assert fold("j", tokens).choices[:1] == fold("j", [whole] if ids else []).choices[:1]
            starts = [event.i for event in tokens]
            assert starts == [1 + sum(len(event.ids) for event in tokens[:index]) for index in range(len(tokens))]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("generate"), st.integers(0, NUM_CHOICES - 1), st.integers(1, 4)),
        st.tuples(st.just("roll back"), st.integers(1, 5), st.just(0)),
        st.tuples(st.sampled_from(["deliver", "deliver", "lose", "replay", "start"]), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=500)
@given(STEPS)
def test_whatever_redis_forgets_no_text_is_doubled_lost_or_refused(steps):
    """F07: the same tokens come again in other events; whatever is lost on the way, the reader has each once."""
    job = Job()
    reader = Reader(job)
    for step, number, num_tokens in steps:
        match step:
            case "generate":
                job.generate(number, num_tokens)
            case "roll back":
                job.roll_back(number)
            case "start":
                job.start()
            case "deliver" if job.channel:
                reader.deliver()
            case "lose" if job.channel:
                job.channel.pop(0)
            case "replay":
                reader.replay()
        reader.check()
    for choice in range(NUM_CHOICES):
        while job.count(choice) < NUM_TOKENS:
            job.generate(choice, 5)
    job.write(End("stop", 1, NUM_CHOICES * NUM_TOKENS, 1, 2, 3, "0" * 64))
    while job.channel and not reader.stream.ended:
        reader.deliver()
    reader.replay()
    reader.check()
    assert reader.stream.ended
    assert sum(len(event.ids) for event in reader.seen if isinstance(event, Token)) == NUM_CHOICES * NUM_TOKENS
