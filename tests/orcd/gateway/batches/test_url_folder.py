"""Files and batches where the files are at a URL: fsspec's memory, and a folder as other processes reach it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import openai
import pytest
import redis

from orcd.errors import InvalidRequest
from orcd.gateway.api_error import ApiError
from orcd.gateway.batches import batch_runner, batch_store, batch_task
from orcd.gateway.batches.file_store import FileStore, data_name
from orcd.gateway.batches.url_folder import UrlFolder
from orcd.gateway.settings import GatewaySettings
from orcd.store import schema
from tests.conftest import wait_until
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.gateway.batches.test_batches import begin, ended, line, lines_of
from tests.orcd.gateway.conftest import NO_TLS, OpenSdk, StartGateway, running
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.orcd.job_writer import MakeStore

BATCH: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}

fsspec = pytest.importorskip("fsspec", reason="is of an extra of its own")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner, "LOOK_S", 0.1)
    monkeypatch.setattr(batch_store, "LEASE_MS", 1500)
    monkeypatch.setattr(batch_task, "KEEP_S", 0.1)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> str:
    return f"memory://orcd-{request.node.name}"


def test_a_file_is_kept_listed_read_and_deleted(start_gateway: StartGateway, memory: str, open_sdk: OpenSdk) -> None:
    sdk, other = (open_sdk(start_gateway(files_dir=memory)) for _ in range(2))
    text = bytes(range(256)) * 10_000
    kept = sdk.files.create(file=("a.jsonl", text), purpose="batch")
    assert other.files.retrieve(kept.id) == kept
    assert other.files.content(kept.id).content == text
    assert [file.id for file in other.files.list()] == [kept.id]
    assert other.files.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.content(kept.id)
    assert UrlFolder(memory).names("") == []


def test_a_batch_goes_on_at_another_gateway_and_its_files_can_be_read_meanwhile(
    redis_url: str, memory: str, connection: redis.Redis, make_store: MakeStore, open_sdk: OpenSdk
) -> None:
    settings = GatewaySettings(redis_url=redis_url, files_dir=memory)
    with running(settings) as first:
        batch_id = begin(open_sdk(first), *(line(str(number)) for number in range(20)), line("wrong", nonsense=1))
        wait_until(lambda: connection.zcard(schema.QUEUED) == 20)
    jobs = set(connection.zrange(schema.QUEUED, 0, -1))
    with running(settings) as second:
        sdk = open_sdk(second)
        wait_until(lambda: sdk.batches.retrieve(batch_id).request_counts.total == 21)
        assert set(connection.zrange(schema.QUEUED, 0, -1)) == jobs
        running_batch: Any = sdk.batches.retrieve(batch_id)
        wait_until(lambda: sdk.files.content(running_batch.error_file_id).content != b"")
        assert sdk.files.content(running_batch.output_file_id).content == b""
        worker = AnsweringWorker(connection, make_store)
        batch = ended(sdk, batch_id)
        worker.stop()
        assert (batch.request_counts.completed, batch.request_counts.failed) == (20, 1)
        assert sorted(int(each["custom_id"]) for each in lines_of(sdk, batch.output_file_id)) == list(range(20))
        assert [each["custom_id"] for each in lines_of(sdk, batch.error_file_id)] == ["wrong"]
        assert not [name for name in UrlFolder(memory).names("") if name.endswith(".data.part")]
        for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
            sdk.files.delete(file_id)
    assert UrlFolder(memory).names("") == []
    assert len(connection.keys("orcd:{*}:job")) == 20


def test_no_line_of_a_gateway_that_was_killed_is_lost_or_runs_twice(
    redis_url: str, tmp_path: Path, connection: redis.Redis, make_store: MakeStore, open_sdk: OpenSdk
) -> None:
    url = f"file://{tmp_path}/files"
    with GatewayProcess(redis_url, "--files-dir", url) as first:
        batch_id = begin(open_sdk(first.url), *(line(str(number)) for number in range(20)))
        wait_until(lambda: connection.zcard(schema.QUEUED) == 20)
        first.process.kill()
        first.process.wait()
        connection.zadd(schema.BATCHES, {batch_id: 0})  # its lease has run out
    jobs = set(connection.zrange(schema.QUEUED, 0, -1))
    worker = AnsweringWorker(connection, make_store)
    with running(GatewaySettings(redis_url=redis_url, files_dir=url)) as second:
        sdk = open_sdk(second)
        wait_until(lambda: sdk.batches.retrieve(batch_id).status == "completed")
        output = sdk.batches.retrieve(batch_id).output_file_id
        assert output is not None
        assert sorted(int(each["custom_id"]) for each in lines_of(sdk, output)) == list(range(20))
    worker.stop()
    assert {key.split(b":")[1].strip(b"{}") for key in connection.keys("orcd:{*}:job")} == jobs


def content(folder: UrlFolder, name: str) -> bytes:
    with folder.open(name) as file:
        return file.read()


def test_what_a_gateway_that_was_given_up_still_writes_does_not_replace_a_whole_file(memory: str) -> None:
    folder = UrlFolder(memory)
    with folder.workplace() as stalled, folder.workplace() as heir:
        stalled.path("a").write_bytes(b"one")
        stalled.keep_part("a")
        heir.fetch("a")
        assert heir.path("a").read_bytes() == b"one"
        with heir.path("a").open("ab") as file:
            file.write(b"two")
        heir.keep("a")
        assert folder.names("") == ["a"]
        stalled.keep_part("a")
    assert (folder.read("a"), folder.size("a"), content(folder, "a")) == (b"onetwo", 6, b"onetwo")


@pytest.mark.parametrize("when", ["before it is opened", "while it is read"])
def test_what_grows_is_read_whole_though_another_gateway_begins_it_anew(
    memory: str, start_gateway: StartGateway, open_sdk: OpenSdk, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder = UrlFolder(memory)
    sdk = open_sdk(start_gateway(files_dir=memory))
    name = data_name(kept := sdk.files.create(file=("a", b"x"), purpose="batch").id)
    folder.delete(name)
    open_file = FileStore.open

    with folder.workplace() as first, folder.workplace() as second:
        first.path(name).write_bytes(b"one\ntwo\n")
        first.keep_part(name)
        second.path(name).write_bytes(b"one\n")

        def take_over(store: FileStore, file_id: str) -> BinaryIO:
            if when == "while it is read":
                file = open_file(store, file_id)
                second.keep_part(name)
                return file
            second.keep_part(name)
            return open_file(store, file_id)

        assert sdk.files.retrieve(kept).bytes == 8
        monkeypatch.setattr(FileStore, "open", take_over)
        content = sdk.files.content(kept).content
    assert content == (b"one\n" if when == "before it is opened" else b"one\ntwo\n")
    assert sdk.files.retrieve(kept).bytes == 4


@pytest.mark.parametrize("read", ["size", "open", "fetch"])
def test_a_part_that_goes_as_its_file_becomes_whole_is_no_file_less(
    memory: str, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    folder = UrlFolder(memory)
    system: Any = fsspec.get_filesystem_class("memory")
    method = {"size": "info", "open": "open", "fetch": "get_file"}[read]
    plain = getattr(system, method)
    with folder.workplace() as place, folder.workplace() as other:
        place.path("a").write_bytes(b"one")
        place.keep_part("a")
        place.path("a").write_bytes(b"onetwo")

        def keep_first(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
            if path.endswith(".part"):
                monkeypatch.setattr(system, method, plain)
                place.keep("a")
            return plain(self, path, *arguments, **options)

        monkeypatch.setattr(system, method, keep_first)
        if read == "size":
            assert folder.size("a") == 6
        elif read == "open":
            assert content(folder, "a") == b"onetwo"
        else:
            other.fetch("a")
            assert other.path("a").read_bytes() == b"onetwo"


def test_nobody_sees_a_part_that_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = UrlFolder(f"file://{tmp_path}/files")
    system: Any = fsspec.get_filesystem_class("file")
    put_file = system.put_file
    seen = []

    def put_half_first(self: Any, source: str, target: str, **options: Any) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:2])
        seen.append(content(folder, "a") if folder.names("a.part") else b"")
        put_file(self, source, target, **options)

    with folder.workplace() as place:
        place.path("a").write_bytes(b"one")
        place.keep_part("a")
        monkeypatch.setattr(system, "put_file", put_half_first)
        place.path("a").write_bytes(b"onetwo")
        place.keep_part("a")
    assert seen == [b"one"]
    assert content(folder, "a") == b"onetwo"
    assert folder.names("") == ["a.part"]


@pytest.mark.parametrize("step", ["put_file", "mv"])
def test_nothing_is_left_of_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    folder = UrlFolder(f"file://{tmp_path}/files")

    def fail(_: Any, source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes())
        raise OSError

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), step, fail)
    (tmp_path / "a").write_bytes(b"one")
    with pytest.raises(ApiError):
        folder.upload(tmp_path / "a", "a")
    assert not [name for name in folder.names("") if name != "a"]


def test_a_file_that_nobody_has_is_not_fetched(memory: str) -> None:
    folder = UrlFolder(memory)
    with folder.workplace() as place:
        place.fetch("a")
        assert not place.path("a").exists()
    with pytest.raises(FileNotFoundError):
        folder.size("a")
    folder.delete("a")


def test_a_gateway_that_does_not_reach_its_files_says_so_and_takes_no_batch(
    redis_url: str,
    memory: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    open_sdk: OpenSdk,
    worker: AnsweringWorker,
) -> None:
    with running(GatewaySettings(redis_url=redis_url, files_dir=memory)) as url:
        sdk = open_sdk(url)
        kept = sdk.files.create(file=("a", line("a").encode()), purpose="batch")

        def fail(*_arguments: Any, **_options: Any) -> None:
            raise PermissionError("secret")

        with monkeypatch.context() as patched:
            system = fsspec.get_filesystem_class("memory")
            for method in ("open", "info", "exists", "ls", "put_file", "cat_file"):
                patched.setattr(system, method, fail)
            batch = httpx.post(f"{url}/batches", json={**BATCH, "input_file_id": kept.id})
            with httpx.Client(base_url=url, verify=NO_TLS) as http:
                for response in (http.get("/files"), http.get(f"/files/{kept.id}"), batch):
                    assert response.status_code == 503
                    assert response.json()["error"]["code"] == "files_unavailable"
                    assert "secret" not in response.text
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(FileStore, "is_readable", lambda *_: False)
            made = sdk.batches.create(input_file_id=kept.id, endpoint="/v1/chat/completions", completion_window="24h")
            wait_until(lambda: "another has to run it" in caplog.text)
            assert sdk.batches.retrieve(made.id).status == "validating"
        assert ended(sdk, made.id).status == "completed"


def test_a_store_that_cannot_be_reached_is_not_readable(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> int:
        raise ApiError(503, "away")

    monkeypatch.setattr(UrlFolder, "size", fail)
    assert not FileStore.at(memory).is_readable("file-x")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense://user:secret@host/x", "cannot be used (ValueError)"),
        ("abfs://user:secret@host/x", "need a package"),
        ("file:///proc/secret", "the folder at file:// cannot be used"),
    ],
)
def test_a_url_that_is_no_use_is_refused_and_not_shown(url: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        FileStore.at(url)
    assert caught.value.message.startswith("files_dir: ")
    assert said in caught.value.message
    assert "secret" not in caught.value.message


def test_a_url_without_fsspec_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(InvalidRequest, match=r"orcd\[files\]"):
        FileStore.at("memory://x")


def test_a_gateway_without_a_url_does_without_fsspec() -> None:
    code = "import sys, orcd.gateway.app; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
