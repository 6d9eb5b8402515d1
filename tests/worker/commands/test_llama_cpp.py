"""The shipped model through `orcd logits` and through llama.cpp, where that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks.demo
from tests.models.make_references import write_as_float32
from worker.model.gguf import open_gguf
from worker.text.chat_template import ChatTemplate
from worker.text.tokenizer import from_metadata

MODEL = Path(tasks.demo.__file__).parent / "haiku-q4_k_m.gguf"
NUM_PROMPTS = 20
NUM_TOKENS = 64
NEAR_TIE = 0.01
ROUNDING = 0.25  # how far 8-bit activations move a logit of this model, with room to spare


def _prompts() -> list[list[int]]:
    """Conversations of the corpus, one after another, cut to equal length."""
    metadata = open_gguf(MODEL).metadata
    tokenizer = from_metadata(metadata)
    template = ChatTemplate.from_metadata(metadata, tokenizer)
    assert template is not None
    corpus = [json.loads(line) for line in (MODEL.parent / "training" / "corpus.jsonl").read_text().splitlines()]
    prompts = []
    for first in corpus[:: len(corpus) // NUM_PROMPTS][:NUM_PROMPTS]:
        messages = []
        for poem in (first, corpus[0], corpus[1]):
            messages += [{"role": "user", "content": f"Write a haiku about {poem['subject']}"}]
            messages += [{"role": "assistant", "content": poem["haiku"]}]
        text = template.render(messages, add_generation_prompt=False)
        prompts.append(tokenizer.encode(text, add_special=False, parse_special=True)[:NUM_TOKENS])
    assert {len(prompt) for prompt in prompts} == {NUM_TOKENS}
    return prompts


def _our_logits(prompts: list[list[int]], folder: Path) -> list[np.ndarray]:
    ids, out = folder / "ids.json", folder / "logits.npz"
    ids.write_text(json.dumps(prompts))
    command = [sys.executable, "-m", "worker", "logits", str(MODEL), "--ids", str(ids), "--out", str(out)]
    subprocess.run([*command, "--device", "cpu"], check=True, timeout=100)
    with np.load(out) as arrays:
        return [arrays[f"logits_{index}"] for index in range(len(prompts))]


def _next_logits(llama: Any, token_id: int) -> np.ndarray:
    llama.eval([token_id])
    return np.ctypeslib.as_array(llama._ctx.get_logits(), (llama.n_vocab(),)).copy()


def _differences(llama_cpp: Any, model: Path, prompts: list[list[int]], ours: list[np.ndarray]) -> list[float]:
    """Our margin at every position where llama.cpp would choose another token."""
    llama = llama_cpp.Llama(str(model), n_ctx=2 * NUM_TOKENS, verbose=False, n_threads=1)
    margins = []
    for prompt, mine in zip(prompts, ours, strict=True):
        llama.reset()
        theirs = np.stack([_next_logits(llama, token_id) for token_id in prompt])
        for row, other in zip(mine, theirs.argmax(axis=1), strict=True):
            if row.argmax() != other:
                margins.append(float(row.max() - row[other]))
    llama.close()
    print(f"{model.name}: {len(margins)} of {NUM_PROMPTS * NUM_TOKENS} positions differ, by {np.round(margins, 4)}")
    return margins


def test_llama_cpp_chooses_the_same_tokens(tmp_path: Path) -> None:
    """On the shipped file llama.cpp rounds activations to 8 bits, which decides some near ties another way; on the same
    weights in float32, where it does not, only ties remain."""
    reason = "llama-cpp-python is not installed (it compiles llama.cpp, which takes minutes)"
    llama_cpp = pytest.importorskip("llama_cpp", reason=reason)
    prompts = _prompts()
    ours = _our_logits(prompts, tmp_path)
    assert [margin for margin in _differences(llama_cpp, MODEL, prompts, ours) if margin >= ROUNDING] == []
    write_as_float32(MODEL, tmp_path / "float32.gguf")
    exact = _differences(llama_cpp, tmp_path / "float32.gguf", prompts, ours)
    assert [margin for margin in exact if margin >= NEAR_TIE] == []
