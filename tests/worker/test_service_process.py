"""A real engine process at the other end of a socketpair."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kernels.devices.open import open_device
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.worker.tiny_model import CONTEXT_LENGTH, VOCAB_SIZE, write_tiny_model
from worker import contract
from worker.contract import (
    Abort,
    Add,
    Choice,
    Event,
    Fatal,
    Load,
    Outputs,
    Ready,
    Sampling,
    Shutdown,
    Stats,
    TokenOutput,
)
from worker.engine.engine import Engine
from worker.model.gguf import open_gguf
from worker.model.registry import load_model
from worker.settings import Settings
from worker.text.grammar.grammar_text import grammar_text
from worker.text.tokenizer import from_metadata

SHIPPED = Path(__file__).parents[2] / "tasks" / "demo" / "haiku-q4_k_m.gguf"
ENDLESS = Sampling(max_tokens=10_000, temperature=0.0)


class Child:
    """A real ``python -m worker`` at the other end of a socketpair."""

    def __init__(self, model: Path | str, *, command: tuple[str, ...] = ("-m", "worker"), **environment: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(60)
        self._splitter = contract.FrameSplitter()
        self._bodies: Iterator[bytes] = iter(())
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--fd", str(theirs.fileno())],
                env={**inherited, "ORCD_MODEL": str(model), "ORCD_DEVICE": "cpu", **environment},
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.socket.close()

    def send(self, *requests: contract.Request) -> None:
        self.socket.sendall(b"".join(map(contract.encode, requests)))

    def receive(self) -> Event | None:
        """The next event; None at the end."""
        while (body := next(self._bodies, None)) is None:
            chunk = self.socket.recv(1 << 16)
            if not chunk:
                return None
            self._bodies = iter(list(self._splitter.feed(chunk)))
        return contract.decode_event(body)

    def receive_until(self, kind: type) -> list[Event]:
        """Events up to the first of ``kind``, which is the last of the list."""
        events: list[Event] = []
        while not events or not isinstance(events[-1], kind):
            event = self.receive()
            assert event is not None, f"the engine left: {self.process.communicate()[1]}"
            events.append(event)
        return events

    def exit_code(self) -> int:
        return self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def child(tiny_model: Path) -> Iterator[Child]:
    with Child(tiny_model) as child:
        child.receive_until(Ready)
        yield child


def collect(child: Child, num_choices: int) -> dict[str, list[TokenOutput]]:
    """Outputs by request until so many choices ended."""
    outputs: dict[str, list[TokenOutput]] = {}
    while sum(each[-1].finish_reason is not None for each in outputs.values()) < num_choices:
        for output in child.receive_until(Outputs)[-1].outputs:
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def test_loading_reports_every_quarter_and_ends_with_ready(tiny_model: Path):
    with Child(tiny_model, ORCD_NAME="poet", ORCD_MAX_SEQUENCES="5") as child:
        *loads, ready = child.receive_until(Ready)
        percents = [load.percent for load in loads]
        assert all(isinstance(load, Load) for load in loads)
        assert percents == sorted(percents)
        assert {0, 25, 50, 75, 100} <= set(percents)
        assert loads[-1].num_bytes == loads[-1].total_bytes
        assert (loads[0].remaining_ms, loads[-1].remaining_ms) == (None, 0)
        assert all(load.remaining_ms >= 0 for load in loads[1:])
        assert (ready.model, ready.architecture, ready.device, ready.max_sequences) == ("poet", "qwen2", "cpu", 5)
        assert (ready.vocab_size, ready.context_length) == (VOCAB_SIZE, CONTEXT_LENGTH)
        assert ready.max_sequence_tokens == CONTEXT_LENGTH
        assert ready.pid == child.process.pid


def test_the_pipe_carries_the_same_tokens_that_the_engine_makes(child: Child, tiny_model: Path):
    adds = [Add(f"r{i}", (1, 2, 3 + i), Sampling(max_tokens=20, seed=i)) for i in range(5)]
    child.send(*adds)
    outputs = collect(child, 5)
    engine = Engine(load_model(open_gguf(tiny_model), open_device("cpu"), lambda *_: None), Settings(device="cpu"))
    for add in adds:
        engine.add(add)
    expected: dict[str, tuple[int, ...]] = {}
    while engine.has_work:
        for output in engine.step():
            expected[output.request_id] = expected.get(output.request_id, ()) + output.ids
    assert {name: tuple(i for each in outputs[name] for i in each.ids) for name in outputs} == expected


def test_requests_sent_while_the_model_loads_are_served_when_it_is_ready(tiny_model: Path):
    with Child(tiny_model) as child:
        child.send(Add("early", (1,), Sampling(max_tokens=2)))
        child.receive_until(Ready)
        assert sum(len(output.ids) for output in collect(child, 1)["early"]) == 2


def ids_of(outputs: list[TokenOutput]) -> tuple[int, ...]:
    return tuple(token_id for output in outputs for token_id in output.ids)


def test_a_grammar_holds_alone_among_others_and_in_an_engine_that_goes_on():
    tokenizer = from_metadata(open_gguf(SHIPPED).metadata)
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    sampling = Sampling(max_tokens=40, seed=5, stop_token_ids=tuple(tokenizer.end_ids))
    add = Add("r", tuple(tokenizer.encode("A frog")), sampling, grammar=grammar_text("json_schema", schema))
    others = [Add(f"free{i}", (1, 2, 3 + i), Sampling(max_tokens=20, seed=i)) for i in range(3)]
    with Child(SHIPPED) as child:
        child.send(add)
        alone = collect(child, 1)["r"]
        bad = msgspec.structs.replace(add, request_id="bad", grammar="no grammar")
        child.send(*others, add, bad)
        outputs = collect(child, 5)
    assert sorted(json.loads(tokenizer.decode(ids_of(alone), skip_special=True)).keys()) == ["a", "b"]
    assert (ids_of(outputs["r"]), outputs["r"][-1].finish_reason) == (ids_of(alone), alone[-1].finish_reason)
    assert outputs["bad"][-1].error_code == "INVALID_REQUEST"
    cut = len(ids_of(alone)) // 2
    with Child(SHIPPED) as child:
        child.send(msgspec.structs.replace(add, choices=(Choice(0, ids_of(alone)[:cut]),)), *others)
        resumed = collect(child, 4)
    assert ids_of(resumed["r"]) == ids_of(alone)[cut:]
    for other in others:
        assert ids_of(resumed[other.request_id]) == ids_of(outputs[other.request_id])


def test_an_abort_ends_a_request_in_the_middle(tiny_model: Path, tmp_path: Path):
    with held_engine(tmp_path), Child(tiny_model, **slow_engine(tmp_path, 0.0)) as child:
        child.send(Add("r", (1, 2), ENDLESS))
        child.receive_until(Outputs)
        child.send(Abort("r"))
        assert collect(child, 1)["r"][-1].finish_reason == "abort"


def test_a_bad_request_is_answered_and_the_engine_lives_on(child: Child):
    child.send(Add("bad", (VOCAB_SIZE,), ENDLESS), Add("good", (1,), Sampling(max_tokens=2)))
    outputs = collect(child, 2)
    assert outputs["bad"][-1].error_code == "INVALID_REQUEST"
    assert outputs["good"][-1].finish_reason == "length"


def test_figures_come_about_once_a_second_while_there_is_work(child: Child):
    child.send(*[Add(f"r{i}", (1,), ENDLESS) for i in range(3)])
    start = time.monotonic()
    while time.monotonic() - start < 1.3:
        if child.receive() is None:
            break
        child.send(Add(f"again{time.monotonic_ns()}", (1,), ENDLESS))
    stats = child.receive_until(Stats)[-1]
    assert stats.healthy
    assert stats.steps > 0
    assert stats.memory_bytes > 0


@pytest.mark.parametrize("how", ["shutdown", "end of pipe", "SIGTERM"])
def test_it_leaves_in_the_middle_of_work_when_told_so(child: Child, how: str):
    child.send(*[Add(f"r{i}", (1,), ENDLESS) for i in range(3)])
    child.receive_until(Outputs)
    if how == "shutdown":
        child.send(Shutdown())
    elif how == "end of pipe":
        child.socket.close()
    else:
        child.process.send_signal(signal.SIGTERM)
    assert child.exit_code() == 0


def test_sigterm_ends_an_idle_engine_at_once(child: Child):
    start = time.monotonic()
    child.process.terminate()
    assert child.exit_code() == 0
    assert time.monotonic() - start < 10


def test_ctrl_c_is_left_to_the_parent(child: Child):
    child.process.send_signal(signal.SIGINT)
    child.send(Add("r", (1,), Sampling(max_tokens=1)))
    assert collect(child, 1)["r"][-1].finish_reason == "length"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_it_dies_with_its_parent_even_when_the_pipe_stays_open(tiny_model: Path):
    between = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'worker', *sys.argv[1:]], close_fds=False)"
    with Child(tiny_model, command=("-c", between)) as child:
        ready = child.receive_until(Ready)[-1]
        assert ready.pid != child.process.pid
        start = time.monotonic()
        child.process.kill()
        assert child.receive() is None  # its end of the pipe closed; ours is still open
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", contract.encode(Fatal("x", "y")), b"\x00\x00\x00\x02\x92\xa3"],
    ids=["a frame of 4 GiB", "no MessagePack", "an event as a request", "a frame cut short"],
)
def test_garbage_on_the_pipe_is_fatal_and_said_so(child: Child, garbage: bytes):
    child.socket.sendall(garbage)
    fatal = child.receive_until(Fatal)[-1]
    assert fatal.code == "INTERNAL"
    assert "protocol error" in fatal.message
    assert child.exit_code() == 1


@pytest.mark.parametrize(
    ("model", "environment", "code", "hint"),
    [
        ("/nowhere/model.gguf", {}, "MODEL_LOAD_FAILED", "/nowhere/model.gguf"),
        ("", {}, "MODEL_LOAD_FAILED", "ORCD_MODEL"),
        (__file__, {}, "MODEL_LOAD_FAILED", "not a GGUF file"),
        ("x", {"ORCD_STEP_TOKENS": "many"}, "INVALID_REQUEST", "ORCD_STEP_TOKENS"),
        (str(SHIPPED), {"ORCD_DEVICE": "cuda:99"}, "MODEL_LOAD_FAILED", "cpu"),
    ],
)
def test_a_load_that_fails_says_why_and_exits_with_one(model: str, environment: dict, code: str, hint: str):
    with Child(model, **environment) as child:
        fatal = child.receive_until(Fatal)[-1]
        assert fatal.code == code
        assert hint in fatal.message
        assert "\n" not in fatal.message
        assert child.exit_code() == 1


def test_a_cache_too_small_for_one_block_fails_the_load(tiny_model: Path):
    with Child(tiny_model, ORCD_KV_CACHE_BYTES="10") as child:
        assert child.receive_until(Fatal)[-1].code == "INSUFFICIENT_VRAM"
