"""``orcd batch``: what it reads and writes, with a worker played by the test."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import pytest
import redis

from orcd.batch import batch_run
from orcd.client import Client
from tests.orcd.answering_worker import AnsweringWorker, FailingWorker
from tests.orcd.cli.command_line import flags, one_error, records, requests_in, run
from tests.orcd.cli.conftest import StandardInput

NOWHERE = "redis://127.0.0.1:1/0"
FLAGS = {
    "--redis", "--errors", "--format", "--output-format", "--order", "--prompt", "--system", "--model", "--max-tokens",
    "--fail-fast", "--temperature", "--top-p", "--top-k", "--seed", "--stop", "--retry", "--cancel",
    "--response-format",
}  # fmt: skip


def test_the_command_has_the_flags_that_other_tools_rely_on() -> None:
    assert flags("batch") >= FLAGS


WRONG_USAGE = [
    "batch",
    "batch in.jsonl",
    "batch missing.jsonl out.jsonl",
    "batch same.jsonl same.jsonl",
    "batch - - out.jsonl",
    "batch {file} out.jsonl --max-tokens 0",
    "batch {file} out.jsonl --format xml",
    "batch {file} out.jsonl --response-format missing.json",
    "batch {file} out.jsonl --response-format {file}",
    "batch {file} out.jsonl --response-format '{{\"type\": '",
    'batch {file} out.jsonl --response-format \'{{"type": "xml"}}\'',
    "batch {file} out.jsonl --prompt 'Say {{text}}'",
    "batch {file} out.jsonl --retry out.jsonl",
    "batch --retry out.jsonl --max-tokens 5",
    "batch --retry out.jsonl --cancel out.jsonl",
    "batch --retry missing.jsonl",
    "batch --cancel missing.jsonl",
    "batch {file} ''",
    "batch {file} .",
    "batch {file} /",
    "batch --retry /",
    "batch --cancel .",
]


@pytest.mark.parametrize("line", WRONG_USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n')
    assert run(shlex.split(line.format(file=file))) == 2
    one_error(capsys, "INVALID_REQUEST")


def test_without_redis_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "GIVE_UP_AFTER_S", 0.0)
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n')
    assert run(["batch", str(file), f"{file}.out", "--redis", NOWHERE]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("orcd: REDIS_UNAVAILABLE: cannot reach Redis at redis://127.0.0.1:1/0; ")


def test_batch_writes_results_and_errors(client: Client, worker: AnsweringWorker, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a", "prompt": "one"}\nbroken\n{"prompt": "two"}\n')
    assert run(["batch", str(source), str(output)]) == 1
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


def test_batch_fails_if_every_line_does(client: Client, failing_worker: FailingWorker, tmp_path: Path) -> None:
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


TEXT = b"rain\nsnow, and ice\n"
SAME_CONTENT = {
    "in.txt": TEXT,
    "lines": TEXT,
    "in.txt.gz": gzip.compress(TEXT),
    "in.csv": b'prompt\nrain\n"snow, and ice"\n',
    "in.jsonl": b'{"messages": [{"role": "user", "content": "rain"}]}\n'
    b'{"messages": [{"role": "user", "content": "snow, and ice"}]}\n',
}


@pytest.mark.parametrize("name", SAME_CONTENT)
def test_the_same_content_in_any_format_is_the_same_requests(
    name: str, client: Client, worker: AnsweringWorker, connection: redis.Redis, tmp_path: Path
) -> None:
    source, output = tmp_path / name, tmp_path / "out.jsonl"
    source.write_bytes(SAME_CONTENT[name])
    assert run(["batch", str(source), str(output), "--max-tokens", "5", "--system", "Be brief.", "--seed", "1"]) == 0
    contents = ["rain", "snow, and ice"]
    assert sorted(requests_in(connection), key=str) == [
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
            "max_tokens": 5,
            "seed": 1,
        }
        for content in contents
    ]
    assert len(records(output)) == 2


def test_a_pipe_is_read_and_results_go_to_standard_output(
    client: Client, worker: AnsweringWorker, standard_input: StandardInput, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    standard_input(TEXT)
    assert run(["batch", "-", "-", "--order", "input"]) == 0
    out, err = capfdbinary.readouterr()
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1, 2]
    assert b"2 of 2 lines have results" in err


def test_failures_of_a_pipe_go_to_standard_error(
    client: Client, worker: AnsweringWorker, standard_input: StandardInput, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    standard_input(b'{"prompt": "a"}\n{"id": 7, "prompt": 5}\n')
    assert run(["batch", "-", "-"]) == 1
    out, err = capfdbinary.readouterr()
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1]
    failure = json.loads(err.splitlines()[0])
    assert (failure["line"], failure["id"], failure["code"]) == (2, 7, "INVALID_REQUEST")


def test_several_inputs_have_one_output_that_names_the_file(
    client: Client, worker: AnsweringWorker, tmp_path: Path
) -> None:
    first, second, output = tmp_path / "a.txt", tmp_path / "b.csv", tmp_path / "out.jsonl"
    first.write_text("one\n")
    second.write_text("id;prompt\nx;two\ny;three\n")
    assert run(["batch", str(first), str(second), str(output), "--order", "input"]) == 0
    assert [(result["file"], result["line"], result["id"]) for result in records(output)] == [
        (str(first), 1, None),
        (str(second), 2, "x"),
        (str(second), 3, "y"),
    ]


def test_a_line_wins_over_the_command_line(
    client: Client, worker: AnsweringWorker, connection: redis.Redis, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a", "max_tokens": 3, "temperature": null, "seed": 2}\n')
    assert run(["batch", str(source), str(tmp_path / "out"), "--max-tokens", "9", "--temperature", "0.5"]) == 0
    assert requests_in(connection) == [{"prompt": "a", "max_tokens": 3, "temperature": 0.5, "seed": 2}]


RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
OPENAI_LINE = {"method": "POST", "url": "/v1/chat/completions"}


@pytest.mark.parametrize("in_file", [False, True])
def test_a_form_of_the_answers_is_for_all_lines_that_do_not_say_otherwise(
    in_file: bool, client: Client, worker: AnsweringWorker, connection: redis.Redis, tmp_path: Path
) -> None:
    source, form = tmp_path / "in.jsonl", json.dumps(RESPONSE_FORMAT)
    if in_file:
        (tmp_path / "form.json").write_text(form)
        form = str(tmp_path / "form.json")
    own = {"response_format": {"type": "text"}}, {"structured_outputs": {"regex": "a"}}, {"response_format": None}, {}
    source.write_text("".join(json.dumps({"prompt": "a", "seed": 1, **fields}) + "\n" for fields in own))
    assert run(["batch", str(source), str(tmp_path / "out"), "--response-format", form]) == 0
    expected = [{**own[0]}, {**own[1]}, {"response_format": RESPONSE_FORMAT}, {"response_format": RESPONSE_FORMAT}]
    requests = [{"prompt": "a", "seed": 1, **fields} for fields in expected]
    assert sorted(requests_in(connection), key=str) == sorted(requests, key=str)


def test_a_form_of_the_answers_is_for_openais_lines_too(
    client: Client, worker: AnsweringWorker, connection: redis.Redis, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    own = {"response_format": {"type": "text"}}, {"guided_regex": "a"}, {}
    bodies = [{"messages": [{"role": "user", "content": "a"}], **fields} for fields in own]
    lines = [{"custom_id": str(number), **OPENAI_LINE, "body": body} for number, body in enumerate(bodies)]
    responses = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": {"input": "a"}}
    source.write_text("".join(json.dumps(line) + "\n" for line in [*lines, responses]))
    assert run(["batch", str(source), str(tmp_path / "out"), "--response-format", json.dumps(RESPONSE_FORMAT)]) == 0
    said = [(request.get("response_format"), request.get("structured_outputs")) for request in requests_in(connection)]
    expected = [({"type": "text"}, None), (None, {"regex": "a"}), (RESPONSE_FORMAT, None), (RESPONSE_FORMAT, None)]
    assert sorted(said, key=str) == sorted(expected, key=str)


def test_other_options_are_another_batch(
    client: Client, worker: AnsweringWorker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("rain\n")
    assert run(["batch", str(source), str(output)]) == 0
    capsys.readouterr()
    assert run(["batch", str(source), str(output), "--max-tokens", "5"]) == 2
    assert "the input or the options have changed" in capsys.readouterr().err
