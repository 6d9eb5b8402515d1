from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.orcd.answering_worker import AnsweringWorker, FailingWorker

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("litellm") is None, reason="LiteLLM takes 240 MB and is the extra orcd[litellm]"
)


def calls(url: str) -> dict[str, dict[str, Any]]:
    """What comes of some calls by LiteLLM, in a process of its own."""
    command = [sys.executable, "-m", "tests.orcd.gateway.litellm_calls", url, "demo"]
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # otherwise it fetches a table of prices
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    told: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_chats_and_completions_are_answered_whole_and_streamed(url: str, worker: AnsweringWorker) -> None:
    told = calls(url)
    assert {told[name]["text"] for name in told if name.startswith(("chat", "completion"))} == {" 1 2 3"}
    assert told["chat"]["tokens"] == told["chat, streamed"]["tokens"] == 3
    assert told["unknown model"]["error"] == "NotFoundError"
    assert "no worker serves it" in told["unknown model"]["text"]
    assert told["wrong field"]["error"] == "BadRequestError"
    assert "top_p" in told["wrong field"]["text"]


def test_a_job_that_fails_has_the_error_of_its_status(url: str, failing_worker: FailingWorker) -> None:
    told = calls(url)
    assert told["chat"]["error"] == "ServiceUnavailableError"
    assert "does not fit" in told["chat"]["text"]
