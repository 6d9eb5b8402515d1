from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import redis

from tasks import batch_run, schema, terminal
from tasks.batch_file import BatchFile, Line
from tasks.cli import cli, run
from tasks.client import Client, RedisUnavailable
from tests.tasks.conftest import MakeStore, Writer, claimed

NOWHERE = "redis://127.0.0.1:1/0"
COMMANDS = {
    "demo": set(),
    "worker": {"--model", "--tokenizer", "--device", "--redis", "--name", "--metrics-port"},
    "generate": {"--redis", "--model", "--max-tokens", "--temperature", "--top-p", "--top-k", "--seed", "--stop"},
    "batch": {"--redis", "--errors"},
    "cancel": set(),
    "status": set(),
    "follow": {"--from"},
    "inspect": {"--json"},
    "tokenize": {"--jsonl"},
    "render": {"--jsonl"},
    "logits": {"--ids", "--out", "--device"},
    "bench engine": {"--device", "--prompt-tokens", "--output-tokens", "--concurrency", "--json"},
    "bench queue": {"--device", "--prompt-tokens", "--output-tokens", "--concurrency", "--json"},
}  # fmt: skip


class Worker:
    """Answers every queued job with the tokens `` 1 2 3``, unless the test holds it."""

    def __init__(self, connection: redis.Redis, make_store: MakeStore) -> None:
        self._redis = connection
        self._store = make_store()
        self._stopping = threading.Event()
        self.finishes = True
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.wait(0.01):
            queued: Any = self._redis.zrange(schema.QUEUED, 0, 4)
            for job_id in queued:
                writer = claimed(self._store, str(job_id, "ascii"))
                writer.start()
                writer.tokens(3)
                if self.finishes:
                    self.end(writer)

    def end(self, writer: Writer) -> None:
        writer.end()


class FailingWorker(Worker):
    """Fails every job."""

    def end(self, writer: Writer) -> None:
        writer.fail("VRAM_OOM", "does not fit")


@pytest.fixture
def worker(connection: redis.Redis, make_store: MakeStore) -> Iterator[Worker]:
    worker = Worker(connection, make_store)
    yield worker
    worker.stop()


@pytest.fixture
def failing_worker(connection: redis.Redis, make_store: MakeStore) -> Iterator[Worker]:
    worker = FailingWorker(connection, make_store)
    yield worker
    worker.stop()


@pytest.fixture
def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of the Redis that the commands of the test use too."""
    monkeypatch.setenv("ORCD_REDIS_URL", redis_url)
    with Client(redis_url) as client:
        yield client


def command(name: str) -> click.Command:
    found: click.Command = cli
    for part in name.split():
        assert isinstance(found, click.Group)
        found = found.commands[part]
    return found


def one_error(capsys: pytest.CaptureFixture[str], code: str) -> str:
    """The message of the one line on standard error (click ends an interrupted line with an empty one)."""
    [line] = capsys.readouterr().err.strip().splitlines()
    found = re.fullmatch(r"orcd: ([A-Z_]+): (.+)", line)
    assert found, line
    assert found[1] == code
    return found[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_flags_that_other_tools_rely_on(name: str) -> None:
    assert COMMANDS[name] <= {option for parameter in command(name).params for option in parameter.opts}


def test_help_names_every_command_in_full_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    page = capsys.readouterr().out
    for name in {name.split()[0] for name in COMMANDS}:
        assert re.search(rf"^  {name} +[A-Z].*[^.]\.$", page, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: orcd {name} ")
    assert len(page) > 150


WRONG_USAGE = [
    "",
    "bench",
    "nonsense",
    "--nonsense",
    "generate",
    "generate hi --temperature hot",
    "generate hi --temperature 3",
    "generate hi --max-tokens 0",
    "generate hi --stop ''",
    "generate ''",
    "generate hi --redis nonsense",
    "status",
    "status 'no such id'",
    "follow job --from -1",
    "batch missing.jsonl out.jsonl",
    "batch same.jsonl same.jsonl",
    "worker",
    "worker --model m.gguf --device tpu",
    "worker --model m.gguf --metrics-port -5",
    "tokenize m.gguf",
    "tokenize m.gguf text --jsonl",
    "render m.gguf",
    "bench queue m.gguf --prompt-tokens 0",
    "bench queue m.gguf --concurrency 1,,2",
    "logits m.gguf",
]


@pytest.mark.parametrize("line", WRONG_USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(line)) == 2
    one_error(capsys, "INVALID_REQUEST")


def test_an_unknown_variable_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCD_DEVISE", "cpu")
    assert run(["worker", "--model", "m.gguf"]) == 2
    assert "ORCD_DEVISE" in one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize("line", ["worker --model", "tokenize --jsonl", "render --jsonl", "bench queue"])
def test_a_model_that_is_not_there_is_named(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "missing.gguf")
    assert run([*line.split(), model]) == 1
    assert one_error(capsys, "MODEL_LOAD_FAILED").startswith(f"{model}: ")


@pytest.mark.parametrize("line", ["generate hi", "cancel job", "status job", "follow job", "batch {file} {file}.out"])
def test_without_redis_every_command_says_so(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(batch_run, "PATIENCE_S", 0.0)
    monkeypatch.setattr("tasks.client.RECONNECT_S", 0.0)
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n')
    assert run([*line.format(file=file).split(), "--redis", NOWHERE]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("orcd: INTERNAL: cannot reach Redis at redis://127.0.0.1:1/0; ")


def test_generate_prints_the_answer(client: Client, worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "Write a haiku", "--max-tokens", "5", "--stop", "a", "--stop", "b"]) == 0
    assert capsys.readouterr().out == " 1 2 3\n"


@pytest.mark.parametrize("raw", [True, False])
def test_generate_sends_a_chat_message_unless_it_is_told_not_to(
    raw: bool, client: Client, worker: Worker, connection: redis.Redis
) -> None:
    options = ["--model", "demo", "--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "4",
               "--seed", "7", "--stop", "x"]  # fmt: skip
    assert run(["generate", "hello", *options, *["--raw"] * raw]) == 0
    [key] = connection.keys("orcd:*:job")
    request = json.loads(connection.hget(key, "request") or b"")
    text = {"prompt": "hello"} if raw else {"messages": [{"role": "user", "content": "hello"}]}
    assert request == text | {"model": "demo", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7,
                              "stop": ["x"]}  # fmt: skip


def test_generate_reads_standard_input(client: Client, worker: Worker, connection: redis.Redis,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("größer".encode())))
    assert run(["generate", "-", "--raw"]) == 0
    [key] = connection.keys("orcd:*:job")
    assert json.loads(connection.hget(key, "request") or b"")["prompt"] == "größer"


def test_generate_as_json_prints_every_event(
    client: Client, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "hi", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["type"] for event in events if event["type"] != "queued"] == ["started", "token", "end"]
    assert events[-1]["tokens_out"] == 3


def test_a_failed_job_is_an_error_with_its_code(client: Client, failing_worker: Worker,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert run(["generate", "hi"]) == 1
    assert one_error(capsys, "VRAM_OOM") == "does not fit"


def test_ctrl_c_cancels_the_job(client: Client, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def interrupt(events: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "show_text", interrupt)
    assert run(["generate", "hi"]) == 130
    one_error(capsys, "CANCELLED")
    [key] = connection.keys("orcd:*:job")
    assert connection.hget(key, "state") == b"cancelled"


def test_cancel_status_and_follow_tell_of_a_job(client: Client, make_store: MakeStore,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    client.submit("a", job_id="waits")
    client.submit("a", job_id="runs")
    writer = claimed(make_store(), "runs")
    writer.start()
    writer.tokens(3)
    assert run(["cancel", "waits"]) == 0
    assert capsys.readouterr().out == "cancelled\n"
    assert run(["status", "runs"]) == 0
    assert re.search(r"^state +running$", capsys.readouterr().out, re.MULTILINE)
    assert run(["status", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens_out"] == 3
    writer.tokens(1)
    writer.end()
    assert run(["follow", "runs"]) == 0
    assert capsys.readouterr().out == " 1 2 3 4\n"
    assert run(["follow", "runs", "--from", "3"]) == 0
    assert capsys.readouterr().out == " 4\n"
    assert run(["follow", "waits"]) == 1
    one_error(capsys, "CANCELLED")


@pytest.mark.parametrize("name", ["cancel", "status", "follow"])
def test_an_unknown_job_is_named(name: str, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "nobody"]) == 2
    assert "job nobody: unknown" in one_error(capsys, "INVALID_REQUEST")


def test_batch_writes_results_and_errors(client: Client, worker: Worker, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a", "prompt": "one"}\nbroken\n{"prompt": "two"}\n')
    assert run(["batch", str(source), str(output)]) == 0
    results = sorted((json.loads(line) for line in output.read_text().splitlines()), key=lambda result: result["line"])
    assert [(result["line"], result["id"], result["text"]) for result in results] == [
        (1, "a", " 1 2 3"),
        (3, None, " 1 2 3"),
    ]
    assert results[0]["finish_reason"] == "length"
    assert results[0]["tokens_out"] == 3
    [error] = (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()
    assert json.loads(error)["line"] == 2
    assert "2 of 3 lines have results" in capsys.readouterr().err


def test_batch_fails_if_every_line_does(client: Client, failing_worker: Worker, tmp_path: Path) -> None:
    source, errors = tmp_path / "in.jsonl", tmp_path / "errors.jsonl"
    source.write_text('{"id": "a", "prompt": "one"}\n')
    assert run(["batch", str(source), str(tmp_path / "out.jsonl"), "--errors", str(errors)]) == 1
    [error] = [json.loads(line) for line in errors.read_text().splitlines()]
    assert {name: error[name] for name in ("line", "id", "code", "message")} == {
        "line": 1,
        "id": "a",
        "code": "VRAM_OOM",
        "message": "does not fit",
    }


def test_an_interrupted_batch_goes_on_without_running_a_job_twice(
    client: Client, worker: Worker, connection: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(20)))
    monkeypatch.setattr(batch_run, "MAX_IN_FLIGHT", 4)
    write = BatchFile.succeed

    def write_and_stop(file: BatchFile, line: Line, result: dict[str, object]) -> None:
        write(file, line, result)
        if file.num_succeeded == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BatchFile, "succeed", write_and_stop)
        assert run(["batch", str(source), str(output)]) == 130
    assert "stopped with 13 lines left; run the same command again to go on" in capsys.readouterr().err
    assert len(output.read_text().splitlines()) == 7
    assert run(["batch", str(source), str(output)]) == 0
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(result["line"] for result in results) == list(range(1, 21))
    assert len(connection.keys("orcd:*:job")) == 20
    assert {connection.hget(key, "attempt") for key in connection.keys("orcd:*:job")} == {b"1"}


def test_a_batch_waits_for_a_redis_that_is_away_for_a_moment(
    client: Client, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "one"}\n')
    answer = Client.statuses
    failures = iter([True, True])

    def statuses(self: Client, job_ids: list[str]) -> object:
        if next(failures, False):
            raise RedisUnavailable("away")
        return answer(self, job_ids)

    monkeypatch.setattr(Client, "statuses", statuses)
    monkeypatch.setattr(batch_run, "RETRY_EVERY_S", 0.01)
    assert run(["batch", str(source), str(output)]) == 0
    assert len(output.read_text().splitlines()) == 1


def test_tokenize_and_render_answer_line_by_line(demo_model: Path, capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert run(["tokenize", str(demo_model), "the rain"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["ids"]
    lines = b'{"text": "the rain"}\n\nbroken\n{"txt": "a"}\n{"text": "\\ud800"}\n{"text": "a", "parse_special": true}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert run(["tokenize", str(demo_model), "--jsonl"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == whole
    assert [answer.keys() for answer in answers[1:]] == [{"error"}, {"error"}, {"error"}, {"ids", "text"}]


def test_render_takes_a_template_a_model_or_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    template, messages = tmp_path / "t.jinja", tmp_path / "messages.json"
    template.write_text("{% for m in messages %}{{ m.role }}:{{ m.content + mark }}{% endfor %}"
                        "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}")  # fmt: skip
    messages.write_text('[{"role": "user", "content": "hi"}]')
    lines = [
        {"messages": [{"role": "user", "content": "hi"}], "variables": {"mark": "!"}},
        {"messages": [{"role": "user", "content": "hi"}] * 2, "variables": {"mark": "!"}},
        {"messages": "hi"},
    ]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(map(json.dumps, lines)).encode())))
    assert run(["render", str(template), "--jsonl"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == {"text": "user:hi!"}
    assert "one only" in answers[1]["error"]
    assert answers[2].keys() == {"error"}
    template.write_text("{{ messages[0].content }}")
    assert run(["render", str(template), str(messages)]) == 0
    assert capsys.readouterr().out == "hi"
    messages.write_text("[" * 100_000)
    assert run(["render", str(template), str(messages)]) == 2
    one_error(capsys, "INVALID_REQUEST")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(demo_model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.cli", "tokenize", str(demo_model), "--jsonl"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(b'{"text": "a"}\n')
    process.stdin.flush()
    assert process.stdout.readline()
    process.stdout.close()
    with process.stdin:
        process.stdin.write(b'{"text": "b"}\n' * 10)
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(30) == 1


def test_the_verbs_of_the_engine_process_pass_their_exit_code_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert run(["logits", str(tmp_path / "m.gguf"), "--ids", "i.json", "--out", "o.npz", "--device", "cpu"]) in (1, 2)
    assert re.search(r"^orcd: [A-Z_]+: ", capfd.readouterr().err, re.MULTILINE)
    assert time.monotonic() - started < 20


def test_a_worker_that_cannot_start_exits_with_one(redis_url: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF")
    command = [sys.executable, "-m", "tasks.cli", "worker", "--model", str(damaged), "--device", "cpu"]
    done = subprocess.run([*command, "--redis", redis_url], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    [error] = [event for line in done.stderr.splitlines() if (event := json.loads(line))["event"] == "error"]
    assert error["code"] == "MODEL_LOAD_FAILED"


@pytest.mark.parametrize("verb", ["worker", "bench engine", "bench queue", "logits"])
@pytest.mark.parametrize("lacks", ["a device", "CuPy"])
def test_without_a_gpu_one_line_says_how_to_install_one_or_choose_the_cpu(
    verb: str, lacks: str, redis_url: str, demo_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "cupy.py").write_text("raise ModuleNotFoundError(\"No module named 'cupy'\", name='cupy')")
    (tmp_path / "ids.json").write_text("[[1, 2]]")
    options = {
        "worker": ["--model", str(demo_model), "--redis", redis_url],
        "logits": [str(demo_model), "--ids", str(tmp_path / "ids.json"), "--out", str(tmp_path / "out.npz")],
    }
    hidden = {"PYTHONPATH": str(tmp_path)} if lacks == "CuPy" else {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tasks.cli", *verb.split(), *options.get(verb, [str(demo_model)])]
    done = subprocess.run(
        [*command, "--device", "cuda:0"], env=os.environ | hidden, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "MODEL_LOAD_FAILED" in line]
    assert re.search("no CUDA device here.*; install|Python package .* is missing; install", line)
    assert "--device cpu" in line
    if verb == "worker":  # its log, of which each line is an event
        assert all(json.loads(line) for line in done.stderr.splitlines())
    else:
        assert done.stderr.count("\n") == 1
