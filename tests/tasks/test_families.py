"""A model of every family through the whole system: `orcd worker` behind a real Redis, `orcd generate` before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcd.client import Client
from tests.models.files import SMALL
from tests.models.make_references import PROMPT
from tests.orcd.cli.command_line import run
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running
from worker.model.gguf import open_gguf
from worker.model.registry import FAMILIES

MODELS = {
    "gemma3-q4_0": False,
    "gemma4-q4_0": True,
    "gpt-oss-mxfp4_moe": True,
    "gpt2-q8_0": True,
    "lfm2-q5_1": True,
    "muse-glimmer-q4_0": True,
    "phi3-q5_k_m": False,
    "qwen3next-q8_0": True,
    "smollm3-q5_1": True,
}
"""One of each family and kind of vocabulary, and whether its engine is killed.

That each model resumes and says what llama.cpp does is tested by `tests/worker/engine/test_equivalence.py`, that texts
and chats become the ids of llama.cpp by `tests/worker/text`.
"""


def test_each_family_and_kind_of_vocabulary_is_among_them_and_one_engine_of_each_family_is_killed() -> None:
    kinds = {name: open_gguf(path).metadata for name, path in SMALL.items()}
    families = {name: FAMILIES[str(each["general.architecture"])] for name, each in kinds.items()}
    forms = {name: (family, kinds[name]["tokenizer.ggml.model"]) for name, family in families.items()}
    assert {forms[name] for name in MODELS} == set(forms.values())
    assert {families[name] for name, is_killed in MODELS.items() if is_killed} == set(families.values())


def _generate(capsys: pytest.CaptureFixture[str], worker: WorkerProcess, *arguments: str) -> list[int]:
    """The ids that ``orcd generate`` shows for `PROMPT`, the likeliest at each step."""
    options = ["--max-tokens", "12", "--temperature", "0", "--json", "--redis", worker.redis_url, *arguments]
    assert run(["generate", PROMPT, *options]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["type"] == "end"
    return [token_id for event in events if event["type"] == "token" for token_id in event["ids"]]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_as_llama_cpp_does_and_one_of_each_family_goes_on_after_its_engine_was_killed(
    name: str, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt as text and, where the model has a template, as a chat's first message; then a longer answer."""
    with np.load(SMALL[name].with_suffix(".npz")) as reference:
        text, chat = (reference[f"p{number}_greedy"][:12].tolist() for number in (0, 1))
        has_template = "p2_ids" in reference
        prompt = reference["p0_ids"].tolist()
    with WorkerProcess(redis_url, SMALL[name], tmp_path, **slow_engine(tmp_path)) as worker:
        assert _generate(capsys, worker, "--raw", "--model", name) == text
        if has_template:
            assert _generate(capsys, worker, "--model", name) == chat
        if MODELS[name]:
            _check_resumed(worker, tmp_path, {"prompt_token_ids": prompt, "max_tokens": 40, "seed": 1})


def _check_resumed(worker: WorkerProcess, folder: Path, request: dict[str, Any]) -> None:
    """An answer whose engine is killed in its middle is that of one which is not."""
    with Client(worker.redis_url) as client:
        undisturbed = client.result(client.submit(**request, ignore_eos=True), timeout=60)
        with held_engine(folder, 15):
            job_id = client.submit(**request, ignore_eos=True)
            wait_until_running(client, [job_id], 10)
            worker.kill_engine()
        resumed = client.result(job_id, timeout=60)
    assert worker.events("ready")[1:], "the engine was not killed"
    assert resumed.choices[0].token_ids == undisturbed.choices[0].token_ids
    assert len(resumed.choices[0].token_ids) == 40
