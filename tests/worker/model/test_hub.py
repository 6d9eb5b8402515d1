"""worker.model.hub: paths stay paths, references to the Hub are downloaded, failures say what to do."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orcd.errors import ModelLoadFailed
from tests.worker.model.tiny import write_tiny
from worker.model.hub import local_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The two requests that huggingface_hub makes for a file, on this machine."""

    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")  # org/repo/resolve/revision/file
        known_repo, revision, file = parts[:2] == ["org", "repo"], parts[3], "/".join(parts[4:])
        problem = None
        if not known_repo:
            problem = "RepoNotFound"
        elif revision not in ("main", "v1", COMMIT):
            problem = "RevisionNotFound"
        elif file not in self.files:
            problem = "EntryNotFound"
        body = b"" if problem else self.files[file]
        self.send_response(404 if problem else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if problem:
            self.send_header("X-Error-Code", problem)
        else:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, bytes]]:
    model = write_tiny("qwen2", tmp_path_factory.mktemp("hub") / "tiny.gguf").read_bytes()
    parts = {f"split-0000{number}-of-00002.gguf": b"part %d" % number for number in (1, 2)}
    handler = type("ThisHub", (Hub,), {"files": {"tiny.gguf": model, "sub/deep.gguf": model, **parts}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", model
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import json, sys
from orcd.errors import ModelLoadFailed
from worker.model.hub import local_path
for reference in json.loads(sys.argv[1]):
    try:
        print(json.dumps({"path": str(local_path(reference))}))
    except ModelLoadFailed as error:
        print(json.dumps({"error": error.message}))
"""


def resolve(endpoint: str, cache: Path, *references: str, offline: bool = False) -> list[dict[str, str]]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", SCRIPT, json.dumps(references)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100).stdout
    return [json.loads(line) for line in output.splitlines()]


def test_files_come_from_the_hub_with_revision_digest_and_all_parts(hub: tuple[str, bytes], tmp_path: Path) -> None:
    endpoint, model = hub
    digest = hashlib.sha256(model).hexdigest()
    results = resolve(
        endpoint,
        tmp_path,
        "hf:org/repo/tiny.gguf",
        f"hf:org/repo/sub/deep.gguf@v1#sha256={digest}",
        "hf:org/repo/split-00001-of-00002.gguf",
        f"hf:org/repo/tiny.gguf#sha256={'0' * 64}",
        "hf:org/other/tiny.gguf",
        "hf:org/repo/tiny.gguf@v2",
        "hf:org/repo/absent.gguf",
    )
    paths = [Path(result["path"]) for result in results[:3]]
    assert paths[0].read_bytes() == paths[1].read_bytes() == model
    assert paths[2].with_name("split-00002-of-00002.gguf").read_bytes() == b"part 2"
    for result, problem in zip(
        results[3:],
        ("SHA-256 is another one", "no repository org/other", "no revision v2", "no file absent.gguf"),
        strict=True,
    ):
        assert problem in result["error"] and "\n" not in result["error"] and endpoint not in result["error"]


def test_without_the_hub_the_cache_serves_and_what_is_not_in_it_is_an_error(
    hub: tuple[str, bytes], tmp_path: Path
) -> None:
    endpoint, model = hub
    resolve(endpoint, tmp_path, "hf:org/repo/tiny.gguf")
    references = "hf:org/repo/tiny.gguf", "hf:org/repo/sub/deep.gguf"
    cached, missing = resolve(endpoint, tmp_path, *references, offline=True)
    assert Path(cached["path"]).read_bytes() == model
    assert "cannot be reached" in missing["error"]


def test_a_folder_that_cannot_be_written_is_named_with_what_to_set(hub: tuple[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (result,) = resolve(hub[0], tmp_path / "file", "hf:org/repo/tiny.gguf")
    assert str(tmp_path / "file") in result["error"]
    assert "cannot be written (Not a directory); set HF_HOME to a folder that can" in result["error"]


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ModelLoadFailed, match="this user has no home folder; set HF_HOME to a folder for downloads"):
        local_path("hf:org/repo/tiny.gguf")


def test_a_path_stays_as_it_is() -> None:
    assert local_path("some/model.gguf") == Path("some/model.gguf")
    assert local_path(Path("/abs/m.gguf")) == Path("/abs/m.gguf")


@pytest.mark.parametrize(
    "reference",
    ["hf:", "hf:org/repo", "hf:repo/m.gguf", "hf:org/repo/m.bin", "hf:org/repo/m.gguf@", "hf:org/repo/m.gguf#sha256=0"],
)
def test_a_malformed_reference_is_told_the_syntax(reference: str) -> None:
    with pytest.raises(ModelLoadFailed, match=r"write hf:ORG/REPO/FILE.gguf"):
        local_path(reference)
