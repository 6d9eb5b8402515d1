"""A model of every family through the whole system: `orcd worker` behind a real Redis, `orcd generate` before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tasks.worker_process import ROOT, WorkerProcess

MODELS = ROOT.parent / "shared" / "conformance" / "models"
FAMILIES = ("llama-q4_k_m", "qwen2-tied-q4_0", "phi3-swa-q4_k_m", "gpt2-q4_0", "gpt-oss-mxfp4")
PROMPT = "Hello, hello"


def _orcd(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "tasks.cli", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_the_family_answers_from_the_command_line(name: str, redis_url: str, tmp_path: Path) -> None:
    model = MODELS / f"{name}.gguf"
    if not model.exists():
        pytest.skip("needs the conformance kit, which is not part of a clone")
    with WorkerProcess(redis_url, model, tmp_path) as worker:
        options = ["--max-tokens", "12", "--temperature", "0", "--json", "--model", name, "--redis", worker.redis_url]
        events = [json.loads(line) for line in _orcd("generate", "--raw", PROMPT, *options).splitlines()]
    assert events[-1]["type"] == "end"
    ids = [token_id for event in events if event["type"] == "token" for token_id in event["ids"]]
    assert 1 <= len(ids) <= 12
    assert ids == _likeliest(model, tmp_path, ids)


def _likeliest(model: Path, folder: Path, ids: list[int]) -> list[int]:
    """What `orcd logits`, which knows no queue, batch or cache reuse, finds likeliest at each place of ``ids``."""
    tokenized = json.loads(_orcd("tokenize", str(model), PROMPT))
    prompt_ids, prompts, logits = tokenized["ids"], folder / "ids.json", folder / "logits.npz"
    prompts.write_text(json.dumps([prompt_ids + ids]))
    _orcd("logits", str(model), "--ids", str(prompts), "--out", str(logits), "--device", "cpu")
    with np.load(logits) as arrays:
        return arrays["logits_0"][len(prompt_ids) - 1 : -1].argmax(axis=1).tolist()
