from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from orcd.batch.batch_file import BatchFile, BatchPaths
from orcd.batch.batch_options import BatchOptions
from orcd.batch.line import Line
from orcd.batch.place import Place
from orcd.errors import InvalidRequest, VramOom
from orcd.request import MAX_REQUEST_BYTES, Request
from orcd.result import Choice, Result


class Files:
    """INPUT, OUTPUT and error file in one folder."""

    def __init__(self, folder: Path, name: str = "in.jsonl", options: BatchOptions | None = None) -> None:
        self.source = folder / name
        self.output = folder / "out.jsonl"
        self.errors = folder / "errors.jsonl"
        self.resume = folder / "out.jsonl.resume"
        self.options = options or BatchOptions()

    def write(self, *lines: bytes) -> None:
        self.source.write_bytes(b"".join(line + b"\n" for line in lines))

    def open(self) -> BatchFile:
        return BatchFile(BatchPaths([str(self.source)], str(self.output), str(self.errors)), self.options)

    def pending(self) -> list[Line]:
        """The pending lines of a run that is then broken off."""
        with pytest.raises(KeyboardInterrupt), self.open() as batch:
            pending = list(batch.pending())
            raise KeyboardInterrupt
        return pending

    def run(self, *numbers: int) -> None:
        """A run in which the jobs of these lines succeed, and which is broken off if others are left."""
        try:
            with self.open() as batch:
                left = 0
                for line in batch.pending():
                    if number_of(line) in numbers:
                        batch.succeed(line, answer_to(line))
                    else:
                        left += 1
                if left:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert left

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def failures(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.errors.read_text().splitlines()]


def number_of(line: Line) -> int:
    return line.name.place.number


def answer_to(line: Line) -> Result:
    return Result(line.job_id, "succeeded", [Choice(f"answer {number_of(line)}", [1], "stop")])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_line_becomes_a_request_with_its_number_and_the_callers_id(files: Files) -> None:
    files.write(
        b'{"id": "a", "prompt": "one", "seed": 1}', b"", b'{"custom_id": 7, "prompt": "two"}', b'{"prompt": "x"}'
    )
    lines = files.pending()
    assert [(number_of(line), line.name.id) for line in lines] == [(1, "a"), (3, 7), (4, None)]
    assert lines[0].request == Request(prompt="one", seed=1)
    assert len({line.job_id for line in lines}) == 3


def test_a_text_file_has_a_chat_message_a_line(tmp_path: Path) -> None:
    files = Files(tmp_path, "in.txt")
    files.write(b"\xef\xbb\xbfWrite a haiku\r", b"  ", '{"prompt": "größer"}'.encode())
    contents = [line.request.messages for line in files.pending()]
    assert contents == [
        [{"role": "user", "content": "Write a haiku"}],
        [{"role": "user", "content": '{"prompt": "größer"}'}],
    ]


BROKEN = [
    (b"not json", "the line is not valid JSON in UTF-8"),
    (b'{"prompt": "\xff"}', "the line is not valid JSON in UTF-8"),
    (b'"text"', "the line must be an object of named fields"),
    (b"[" * 100_000, "the line is not valid JSON in UTF-8"),
    (b"{}", "give exactly one of prompt, messages and prompt_token_ids; found none"),
    (b'{"prompt": "a", "temprature": 1}', "temprature: unknown field; did you mean temperature?"),
    (b'{"prompt": "a", "temperature": 9}', "temperature: expected `float` <= 2.0"),
    (b'{"prompt": "a", "id": [1]}', "id: give one id (or custom_id), a string or a whole number"),
    (b'{"prompt": "a", "id": 1, "custom_id": 1}', "id: give one id (or custom_id), a string or a whole number"),
    (b"x" * (MAX_REQUEST_BYTES + 100), f"the line is longer than {MAX_REQUEST_BYTES} bytes"),
]


def test_broken_lines_go_to_the_error_file_and_the_others_run(files: Files) -> None:
    files.write(*[text for text, _ in BROKEN], b'{"prompt": "good"}')
    files.run(len(BROKEN) + 1)
    assert [result["line"] for result in files.results()] == [len(BROKEN) + 1]
    assert files.failures() == [
        {"line": number, "id": 1 if b'"id": 1' in text else None, "code": "INVALID_REQUEST", "message": message}
        for number, (text, message) in enumerate(BROKEN, 1)
    ]


def test_no_line_of_an_error_file_quotes_a_prompt(files: Files) -> None:
    files.write(b'{"prompt": "canary", "top_k": "canary"}', b'{"prompt": "canary"', b'{"canary": "canary"')
    files.run()
    assert len(files.failures()) == 3
    assert "canary" not in files.errors.read_text()


def test_an_interrupted_batch_goes_on_with_the_same_jobs(files: Files) -> None:
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}', b'{"prompt": "c"}')
    first = files.pending()
    files.run(2)
    assert files.pending() == [replace(first[0], created_s=ANY), replace(first[2], created_s=ANY)]
    files.run(1, 3)
    assert [result["line"] for result in files.results()] == [2, 1, 3]
    assert {result["job_id"] for result in files.results()} == {line.job_id for line in first}


def test_a_finished_batch_leaves_results_and_nothing_else(files: Files) -> None:
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}')
    files.run(1, 2)
    assert files.output.exists()
    assert not files.resume.exists()
    assert not files.errors.exists()


def test_a_failed_line_is_tried_again_by_the_next_run_as_another_job(files: Files) -> None:
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}')
    with files.open() as batch:
        one, two = batch.pending()
        batch.succeed(one, answer_to(one))
        batch.fail(two.name, VramOom("does not fit"))
        assert (batch.num_lines, batch.num_succeeded, batch.num_failed, batch.num_done) == (2, 1, 1, 2)
    [failure] = files.failures()
    assert failure == {"line": 2, "id": None, "job_id": two.job_id, "code": "VRAM_OOM", "message": "does not fit"}
    [again] = files.pending()
    assert number_of(again) == 2
    assert again.job_id != two.job_id


def test_a_torn_last_line_is_cut_off_and_run_again(files: Files) -> None:
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}')
    jobs = files.pending()
    files.run(1, 2)
    whole = files.output.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first + 1, len(whole)):
        files.output.write_bytes(whole[:end])
        assert [number_of(line) for line in files.pending()] == [2]
        assert files.output.read_bytes() == whole[:first]
    files.run(2)
    assert [result["line"] for result in files.results()] == [1, 2]
    assert files.results()[1]["job_id"] != jobs[1].job_id  # the batch had been finished: this is another one


@pytest.mark.parametrize(
    "content", [b"my notes", b'{"prompt": "a"}', b'{"line": 1}\n', b'{"line":1,"job_id":"x-1"}\nhello\n']
)
def test_a_file_that_is_no_result_file_is_left_alone(files: Files, content: bytes) -> None:
    files.write(b'{"prompt": "a"}')
    files.output.write_bytes(content)
    with (
        pytest.raises(InvalidRequest, match=r"is not a result of orcd batch in this format; choose another OUTPUT"),
        files.open(),
    ):
        pass
    assert files.output.read_bytes() == content


def test_results_of_another_input_are_noticed(files: Files) -> None:
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}')
    files.run(2)
    files.write(b'{"prompt": "a"}', b'{"prompt": "changed"}')
    with pytest.raises(InvalidRequest, match=r"line 2 is not the one that .* has a result for"), files.open() as batch:
        list(batch.pending())


def test_lines_can_be_added_to_the_input(files: Files) -> None:
    files.write(b'{"prompt": "a"}')
    files.run(1)
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}')
    assert [number_of(line) for line in files.pending()] == [2]


def test_two_batches_cannot_write_one_output(files: Files) -> None:
    files.write(b'{"prompt": "a"}')
    with files.open() as batch:
        with pytest.raises(InvalidRequest, match="another batch is writing this file"), files.open():
            pass
        for line in batch.pending():
            batch.succeed(line, answer_to(line))


def test_files_that_cannot_be_used_are_named(files: Files, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"in\.jsonl: cannot be read \(No such file or directory\)"), files.open():
        pass
    files.write(b'{"prompt": "a"}')
    files.output = tmp_path / "missing" / "out.jsonl"
    with (
        pytest.raises(InvalidRequest, match=r"out\.jsonl: cannot be written \(No such file or directory\)"),
        files.open(),
    ):
        pass
    files.output = files.source
    with pytest.raises(InvalidRequest, match="must be different files"):
        files.open()


def test_going_on_runs_failed_jobs_again_and_leaves_those_that_go_on(files: Files) -> None:
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}')
    with pytest.raises(KeyboardInterrupt), files.open() as batch:
        one, two = batch.pending()
        batch.submit([one, two])
        batch.fail(two.name, VramOom("does not fit"))
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), files.open() as batch:
        again = list(batch.pending())
        assert [batch.was_submitted(line) for line in again] == [True, False]
        raise KeyboardInterrupt
    assert again[0] == replace(one, created_s=again[0].created_s)
    assert again[1].job_id != two.job_id


def test_a_batch_with_failures_keeps_what_it_needs_to_be_tried_again(files: Files) -> None:
    files.write(b"broken", b'{"prompt": "b"}')
    with files.open() as batch:
        [line] = batch.pending()
        batch.succeed(line, answer_to(line))
    assert files.resume.exists()
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}')
    files.run(1)
    assert not files.resume.exists()
    assert not files.errors.exists()


def test_a_result_for_a_line_that_is_gone_is_noticed(files: Files) -> None:
    files.write(b'{"prompt": "a"}', b'{"prompt": "b"}')
    files.run(2)
    files.write(b'{"prompt": "a"}')
    with pytest.raises(InvalidRequest, match="has a result for a line that no input has"), files.open():
        pass


def test_openai_lines_have_openai_results_from_which_a_batch_goes_on(files: Files) -> None:
    line = '{"custom_id": "%s", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}'
    files.write(*[(line % name).encode() for name in "abca"])
    jobs = files.pending()
    files.run(2)
    assert [(result["custom_id"], result["response"]["status_code"]) for result in files.results()] == [("b", 200)]
    [repeated] = files.failures()
    assert (repeated["custom_id"], repeated["line"]) == ("a", 4)
    assert "line 1 has the same one" in repeated["error"]["message"]
    assert files.pending() == [replace(jobs[0], created_s=ANY), replace(jobs[2], created_s=ANY)]


def test_each_of_several_inputs_goes_on_by_itself(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    paths = BatchPaths([str(first), str(second)], str(tmp_path / "out.jsonl"))
    first.write_text("one\n")
    second.write_text("two\nthree\n")
    with pytest.raises(KeyboardInterrupt), BatchFile(paths, BatchOptions()) as batch:
        for line in batch.pending():
            if line.name.place == Place(1, 1):
                batch.succeed(line, answer_to(line))
        raise KeyboardInterrupt
    first.write_text("one\nand more\n")
    with BatchFile(paths, BatchOptions()) as batch:
        pending = list(batch.pending())
    assert [line.name.place for line in pending] == [Place(0, 1), Place(0, 2), Place(1, 2)]
    assert [line.name.file for line in pending] == [str(first), str(first), str(second)]
