"""Rendering and tokenising in a child process: the same texts and ids, and no template, text or signal can hurt."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orcd.errors import ContextLengthExceeded, InvalidRequest, OrcdError
from tests.conftest import wait_until
from tests.worker.text.test_tokenizer_long_texts import ticking
from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers
from worker.text.chat_template import ChatTemplate
from worker.text.process import frames
from worker.text.process.text_process import LimitExceeded, TextProcess, VocabularyFiles

HI = [{"role": "user", "content": "Hi"}]
HOSTILE = "hostile"
MAX_GAP_S = 0.2
"""10 MB hold the interpreter for 30 ms; on a busy machine that takes several times as long."""
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ eos_token }}"
SQUARES = "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}"

MakeProcess = Callable[..., TextProcess]


@pytest.fixture
def make_process() -> Iterator[MakeProcess]:
    """Processes by template; with a short wall-clock limit unless another is given."""
    made: list[TextProcess] = []

    def make(source: str | None, files: VocabularyFiles | None = None, **limits: Any) -> TextProcess:
        made.append(TextProcess(ChatTemplate(source, eos_token="</s>") if source else None, files, **limits))
        return made[-1]

    yield make
    for process in made:
        process.close()


def _or_hostile(source: str) -> str:
    """A template that does this if the message is hostile, and is an ordinary one otherwise."""
    return f"{{% if messages[0].content == '{HOSTILE}' %}}{source}{{% else %}}{CHAT}{{% endif %}}"


def _refusal(process: TextProcess) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        process.render([{"role": "user", "content": HOSTILE}])
    return caught.value


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_that_dies_while_nobody_calls_it_is_no_zombie(make_process: MakeProcess) -> None:
    process = make_process(CHAT)
    process.start()
    child = process.pid or 0
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def test_messages_become_what_the_template_makes_of_them(make_process: MakeProcess) -> None:
    process = make_process(CHAT)
    assert process.render(HI) == "<user>Hi</s>"
    pid = process.pid
    messages = [*HI, {"role": "assistant", "content": "é \U0001f438", "n": 2**80}]
    arguments: dict[str, Any] = {"add_generation_prompt": False, "variables": {"n": 1}}
    assert process.render(messages, **arguments) == ChatTemplate(CHAT, eos_token="</s>").render(messages, **arguments)
    assert process.pid == pid


def test_what_the_template_says_reaches_the_caller(make_process: MakeProcess) -> None:
    with pytest.raises(InvalidRequest, match=r"messages: .*roles must alternate") as caught:
        make_process("{{ raise_exception('roles must alternate') }}").render(HI)
    assert not isinstance(caught.value, LimitExceeded)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ lipsum(n=10**8) }}",
        SQUARES,
        "{{ (3 ** 8000000) // (7 ** 2500000) > 1 }}",
        "{{ ('a' * 10**7).count('a' * 10**6 ~ 'b') }}{{ ('ab' * 5 * 10**6) | wordwrap(1) | length }}",
        "{% for i in range(99999) %}{% set x = ([3, 1, 2] * 10**6) | sort %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(99999) | join(range(9) | join('-')) %}{% endfor %}",
    ],
)
def test_a_template_that_runs_without_end_ends_and_the_next_call_is_answered(
    make_process: MakeProcess, source: str
) -> None:
    """F16: what runs in C sees no limit of Python's, and holds the interpreter meanwhile."""
    process = make_process(_or_hostile(source), wall_limit_s=60)
    assert process.render(HI) == "<user>Hi</s>"
    pid = process.pid
    process._wall_limit_s = 0.3  # more than a gap may be
    with ticking() as gaps:
        error = _refusal(process)
    process._wall_limit_s = 60
    assert isinstance(error, LimitExceeded)
    begin = "messages: the model's chat template refuses them: it takes longer than"
    assert error.message in (f"{begin} 0.3 s", f"{begin} 2 s"), "the latter if we look late"
    assert max(gaps) < MAX_GAP_S, "other threads run on"
    assert process.render(HI) == "<user>Hi</s>"
    assert process.pid != pid


def test_a_child_that_does_not_answer_in_time_is_replaced(make_process: MakeProcess) -> None:
    process = make_process(CHAT, wall_limit_s=60)
    process.render(HI)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    process._wall_limit_s = 0.1
    with pytest.raises(LimitExceeded, match=r"it takes longer than 0\.1 s$"):
        process.render(HI)
    process._wall_limit_s = 60
    assert process.render(HI) == "<user>Hi</s>"
    assert process.pid != pid


def test_processor_time_is_limited_by_the_kernel(make_process: MakeProcess) -> None:
    """F16: also if nobody waits for the answer any more."""
    error = _refusal(make_process(_or_hostile(SQUARES), wall_limit_s=100))
    assert isinstance(error, LimitExceeded)
    assert "takes longer than 2 s" in error.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ('a' * 10**7).replace('a', 'b' * 300) }}",
        "{{ 'a'.rjust(10**10) }}",
        "{{ '%09999999999d' % 1 }}",
        "{{ (['a' * 10**7] * 300) | join }}",
        # Together: each value would fit. Only the last is large, and it is refused before it is touched: the pages of
        # 2 GB cost a slow machine more than the processor time that a call has.
        "{% set ns = namespace(l=[]) %}{% for n in (10**8, 10**8, 2 * 10**9) %}"
        "{% set ns.l = ns.l + ['a'.rjust(n)] %}{% endfor %}",
        "{% set l = [[1] * 10**7, [2] * 10**7] %}{% set s = 'a'.center(2 * 10**9) %}{{ l | length }}",
    ],
)
def test_a_template_that_wants_all_memory_is_refused_and_the_process_lives_on(
    make_process: MakeProcess, source: str
) -> None:
    """F16."""
    process = make_process(_or_hostile(source), wall_limit_s=60)
    process.render(HI)
    pid = process.pid
    assert "memory" in _refusal(process).message
    assert (process.render(HI), process.pid) == ("<user>Hi</s>", pid)


def test_a_template_that_writes_or_calls_itself_without_end_is_refused(make_process: MakeProcess) -> None:
    for source, said in (
        ("{{ 'a' * 10**10 }}", "longer than"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "longer than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ range(10**9) | list }}", "OverflowError"),
    ):
        assert said in _refusal(make_process(_or_hostile(source), wall_limit_s=60)).message, source


def test_long_messages_and_deep_ones_hold_up_no_other_thread(make_process: MakeProcess) -> None:
    """F16: 10 MB of content."""
    process = make_process(CHAT, wall_limit_s=60)
    messages = [{"role": "user", "content": "é x " * 2_500_000}]
    longest: list[float] = []
    while len(longest) < 5 and min(longest, default=1.0) > MAX_GAP_S:
        with ticking() as gaps:
            text = process.render(messages)
        longest.append(max(gaps))
    assert len(text) == 10_000_000 + len("<user></s>")
    assert min(longest) < MAX_GAP_S
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested deeply"):
        process.render([{"role": "user", "content": deep}])


def test_a_call_longer_than_it_may_be_is_not_sent(make_process: MakeProcess) -> None:
    process = make_process(CHAT, max_bytes=1000)
    with pytest.raises(LimitExceeded, match="1000 bytes"):
        process.render([{"role": "user", "content": "x" * 1000}])
    assert process.pid is None


def test_ids_are_those_of_the_tokenizer(make_process: MakeProcess, demo_model: Path) -> None:
    process = make_process(None, VocabularyFiles(str(demo_model)))
    own = tokenizers.from_metadata(open_gguf(demo_model).metadata)
    text = "the old pond <|im_end|> é\U0001f438" * 5000
    for arguments in ({"add_special": True, "parse_special": True}, {"add_special": False, "parse_special": False}):
        assert process.encode(text, max_tokens=None, **arguments) == own.encode(text, **arguments)
    with pytest.raises(ContextLengthExceeded, match="at least"):
        process.encode(text, add_special=True, parse_special=True, max_tokens=100)


def test_a_vocabulary_that_is_gone_says_so(make_process: MakeProcess, tmp_path: Path) -> None:
    process = make_process(None, VocabularyFiles(str(tmp_path / "gone.gguf")))
    with pytest.raises(OrcdError, match=r"gone\.gguf"):
        process.encode("x", add_special=True, parse_special=True, max_tokens=None)


def test_a_child_that_somebody_killed_costs_no_call(make_process: MakeProcess) -> None:
    process = make_process(CHAT)
    process.start()
    for _ in range(2):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert process.render(HI) == "<user>Hi</s>"


def _kill_in_calls(process: TextProcess, number: signal.Signals, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the child of the next call get a signal when the call was sent, and so that of the tries that follow."""
    process.render(HI)
    receive, stopped = frames.receive_answer, [process.pid]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # it cannot answer before it gets the signal

    def receive_of_killed(connection: socket.socket, deadline: float) -> frames.Answer:
        pid = process.pid
        assert pid is not None
        if pid in stopped:
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)
            return receive(connection, deadline)
        has_started = receive(connection, deadline)
        if len(stopped) < times:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        return has_started

    monkeypatch.setattr(frames, "receive_answer", receive_of_killed)


def test_a_child_that_is_killed_in_a_call_is_tried_once_more(
    make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = make_process(CHAT, wall_limit_s=60)
    _kill_in_calls(process, signal.SIGKILL, 1, monkeypatch)
    assert process.render(HI) == "<user>Hi</s>"
    monkeypatch.undo()
    _kill_in_calls(process, signal.SIGKILL, 2, monkeypatch)
    with pytest.raises(OrcdError, match=r"twice ended the process .*-9") as caught:
        process.render(HI)
    assert caught.value.code == "INTERNAL"


def test_a_library_that_aborts_has_run_out_of_memory(
    make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = make_process(CHAT, wall_limit_s=60)
    _kill_in_calls(process, signal.SIGABRT, 1, monkeypatch)
    with pytest.raises(LimitExceeded, match="needs more than 2048 MiB"):
        process.render(HI)


@pytest.mark.parametrize(("program", "said"), [("/bin/false", "exit code 1"), ("/nowhere", "cannot be started")])
def test_a_child_that_cannot_run_is_our_error(
    make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(OrcdError, match=said) as caught:
        make_process(CHAT).render(HI)
    assert caught.value.code == "INTERNAL"


def test_what_is_killed_for_good_answers_no_more(make_process: MakeProcess) -> None:
    process = make_process(CHAT, wall_limit_s=60)
    process.render(HI)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # so that the call is answered by nobody
    killer = threading.Timer(0.3, process.kill)
    killer.start()
    for _ in range(2):
        with pytest.raises(OrcdError) as caught:
            process.render(HI)
        assert not isinstance(caught.value, LimitExceeded)
        killer.join()
    assert process.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_knows_no_setting_and_so_no_password(
    make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCD_REDIS_URL", "redis://:secret@host/0")
    process = make_process(CHAT)
    process.render(HI)
    assert b"secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()
