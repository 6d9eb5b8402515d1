"""Clients that stream: each submits a job, follows it to its end, checks what it saw and submits the next."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier

import numpy as np
import redis
from numpy.random import default_rng

from orcd.async_client import AsyncClient
from orcd.errors import OrcdError
from orcd.events import End, Error, Event, Token, decode_event
from orcd.store import schema

STREAMS_PER_PROCESS = 16
"""A client process takes 15 to 25 us of CPU time for an event: at 250 events a second and stream a tenth of a core."""
END_TIMEOUT_S = 120.0
PER_S = 100
"""Arrivals are counted in bins of a hundredth of a second."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the streams ask for; ``begin`` is on the clock of `time.monotonic`, which all processes share."""

    redis_url: str
    begin: float
    seconds: float
    vocab_size: int
    prompt_tokens: int
    output_tokens: int
    sampling: Mapping[str, float | int]  # by the names of `orcd.sampling.SamplingFields`


@dataclass(slots=True)
class Stream:
    """One job as its client saw it; times are seconds since the load began, and ``problem`` says what was wrong."""

    job_id: str
    submitted_s: float
    first_s: float = 0.0
    end_s: float = 0.0
    problem: str = ""


@dataclass(slots=True)
class Seen:
    """What some streams saw: their jobs, and how many tokens arrived in which hundredth of a second."""

    streams: list[Stream] = field(default_factory=list)
    arrivals: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, parts: Iterable[Seen]) -> Seen:
        """All of them together."""
        whole = cls()
        for part in parts:
            whole.streams += part.streams
            whole.arrivals.update(part.arrivals)
        return whole

    @property
    def problems(self) -> list[str]:
        """What was wrong, a line for each job."""
        return [f"{stream.job_id}: {stream.problem}" for stream in self.streams if stream.problem]

    def tokens_per_s(self, start_s: float, end_s: float) -> float:
        """Tokens that arrived between two times, by the time between them."""
        bins = range(round(start_s * PER_S), round(end_s * PER_S))
        return sum(self.arrivals[each] for each in bins) / (end_s - start_s)

    def silence_s(self, after_s: float) -> float:
        """The longest time after ``after_s`` in which no stream got a token, while any was still to come."""
        times = [round(after_s * PER_S), *sorted(each for each in self.arrivals if each > after_s * PER_S)]
        return float(max(np.diff(times), default=0)) / PER_S

    def of_jobs(self, job_ids: Set[str]) -> list[Stream]:
        """The streams of those jobs that are among them."""
        return [stream for stream in self.streams if stream.job_id in job_ids]


def check_events(events: Iterable[Event], num_tokens: int) -> str:
    """What is wrong with the events of a job that had to generate ``num_tokens``; '' if nothing."""
    seen, ended = 0, False
    for event in events:
        if ended:
            return "something follows the terminal event"
        match event:
            case Token(i=i, ids=ids):
                if i != seen + 1:
                    return f"token {i} after {seen} tokens"
                seen += len(ids)
            case Error(code=code, message=message):
                return f"{code}: {message}"
            case End():
                ended = True
    if not ended:
        return "no terminal event"
    return "" if seen == num_tokens else f"{seen} tokens, not {num_tokens}"


def run_streams(load: Load, numbers: range) -> Seen:
    """The streams of one client process."""
    return asyncio.run(_run_streams(load, numbers))


async def _run_streams(load: Load, numbers: range) -> Seen:
    seen = Seen()
    async with AsyncClient(load.redis_url) as client:
        await asyncio.gather(*(_run_stream(client, load, number, seen) for number in numbers))
    return seen


async def _run_stream(client: AsyncClient, load: Load, number: int, seen: Seen) -> None:
    generator = default_rng(number)
    await asyncio.sleep(max(0.0, load.begin - time.monotonic()))
    while (submitted_s := time.monotonic() - load.begin) < load.seconds:
        stream = Stream(f"s{number}-{submitted_s:.3f}", submitted_s)
        seen.streams.append(stream)
        try:
            await client.submit(
                job_id=stream.job_id,
                prompt_token_ids=generator.integers(0, load.vocab_size, load.prompt_tokens).tolist(),
                max_tokens=load.output_tokens,
                ignore_eos=True,
                **load.sampling,
            )
            await _follow(client, load, stream, seen.arrivals)
        except (OrcdError, TimeoutError) as error:
            stream.problem = str(error)
            return


async def _follow(client: AsyncClient, load: Load, stream: Stream, arrivals: Counter[int]) -> None:
    events: list[Event] = []
    async with aclosing(client.events(stream.job_id, timeout=load.seconds + END_TIMEOUT_S)) as following:
        async for event in following:
            events.append(event)
            if isinstance(event, Token):
                now_s = time.monotonic() - load.begin
                stream.first_s = stream.first_s or now_s
                arrivals[int(now_s * PER_S)] += len(event.ids)
    stream.end_s = time.monotonic() - load.begin
    stream.problem = check_events(events, load.output_tokens)


def check_logs(redis_url: str, streams: Sequence[Stream], num_tokens: int) -> list[str]:
    """What is wrong in the token logs themselves, a line for each job."""
    problems = []
    with redis.Redis.from_url(redis_url) as connection:
        for stream in streams:
            entries = connection.xrange(schema.log_key(stream.job_id))
            if problem := check_events((decode_event(fields[b"e"]) for _, fields in entries), num_tokens):
                problems.append(f"{stream.job_id}: in its log: {problem}")
    return problems


def log_bytes(redis_url: str, streams: Sequence[Stream]) -> int:
    """What the token logs of these jobs take of Redis's memory, as it says itself."""
    with redis.Redis.from_url(redis_url) as connection:
        return sum(connection.memory_usage(schema.log_key(stream.job_id), samples=0) or 0 for stream in streams)


@contextmanager
def client_processes(num_streams: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for so many streams, all of which have started and imported what they need."""
    num_processes = _num_processes(num_streams)
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(num_processes + 1)
    with ProcessPoolExecutor(num_processes, context, initializer=_start, initargs=(started,)) as pool:
        for _ in range(num_processes):  # each of these has a process started for it, as none can end before all have
            pool.submit(int)
        started.wait(END_TIMEOUT_S)
        yield pool


def _start(started: Barrier) -> None:
    started.wait(END_TIMEOUT_S)


def run_clients(pool: ProcessPoolExecutor, load: Load, num_streams: int) -> list[Future[Seen]]:
    """Deal the streams out to the `client_processes`, in turn: those that begin together end together."""
    num_processes = _num_processes(num_streams)
    return [pool.submit(run_streams, load, range(first, num_streams, num_processes)) for first in range(num_processes)]


def _num_processes(num_streams: int) -> int:
    return -(-num_streams // STREAMS_PER_PROCESS)
