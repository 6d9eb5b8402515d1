"""A worker whose model file has a chat template that is no Jinja, and a token to begin with that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from orcd.client import Client
from tests.tasks.worker_process import WorkerProcess
from worker.model.gguf import open_gguf

MESSAGES = [{"role": "user", "content": "Write a haiku about rain"}]


@pytest.fixture
def broken_model(demo_model: Path, tmp_path: Path) -> Path:
    template = open_gguf(demo_model).metadata["tokenizer.chat_template"].encode()
    key = b"tokenizer.ggml.bos_token_id" + b"\x04\0\0\0"
    before, after = demo_model.read_bytes().replace(template, b"{% for".ljust(len(template))).split(key)
    path = tmp_path / "broken.gguf"
    path.write_bytes(before + key + b"\xff\xff\xff\xff" + after[4:])
    return path


def test_it_completes_prompts_and_says_of_messages_what_to_do(
    broken_model: Path, redis_url: str, client: Client, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, broken_model, tmp_path) as worker:
        completion = client.result(client.submit(prompt="old pond", max_tokens=4), timeout=60)
        chat = client.result(client.submit(messages=MESSAGES, max_tokens=4), timeout=60)
        (event,) = worker.events("no_chat_template")
        (odd,) = worker.events("odd_vocabulary")
    assert completion.state == "succeeded"
    assert "bos_token_id is 4294967295" in odd["message"]
    assert chat.error is not None and chat.error.code == "INVALID_REQUEST"
    for text in (chat.error.message, event["message"]):
        assert "not a valid template" in text and "--chat-template FILE" in text


def test_with_a_template_in_a_file_it_takes_messages(
    broken_model: Path, demo_model: Path, redis_url: str, client: Client, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(open_gguf(demo_model).metadata["tokenizer.chat_template"])
    with WorkerProcess(redis_url, broken_model, tmp_path, ORCD_CHAT_TEMPLATE=str(template)) as worker:
        chat = client.result(client.submit(messages=MESSAGES, max_tokens=4), timeout=60)
        assert worker.events("no_chat_template") == []
    assert chat.state == "succeeded"
