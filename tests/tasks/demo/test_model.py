import json
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import pytest

import tasks.demo
from kernels.devices.open import open_device
from orcd.request import decode
from tasks.demo.training.conversations import Haiku, read_corpus
from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.model.gguf import open_gguf
from worker.model.registry import load_model
from worker.settings import Settings
from worker.text.chat_template import ChatTemplate
from worker.text.tokenizer import Tokenizer, from_metadata

DEMO = Path(tasks.demo.__file__).parent
MODEL = DEMO / "haiku-q4_k_m.gguf"
MAX_MODEL_BYTES = 8_000_000


@pytest.fixture(scope="module")
def corpus() -> list[Haiku]:
    return read_corpus()


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return dict(open_gguf(MODEL).metadata)


@pytest.fixture(scope="module")
def tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return from_metadata(metadata)


def greedy_answers(requests: list[str], metadata: dict[str, Any], tokenizer: Tokenizer) -> list[str]:
    """The shipped model's answers at temperature 0, through the project's own engine, all in one batch."""
    template = ChatTemplate.from_metadata(metadata, tokenizer)
    assert template is not None
    settings = Settings(device="cpu", max_sequences=64, kv_cache_bytes=64 * 1024 * 1024)
    engine = Engine(load_model(open_gguf(MODEL), open_device("cpu"), lambda done, total: None), settings)
    sampling = Sampling(max_tokens=64, temperature=0.0, stop_token_ids=tuple(tokenizer.end_ids))
    for number, request in enumerate(requests):
        text = template.render([{"role": "user", "content": request}])
        prompt_ids = tokenizer.encode(text, add_special=False, parse_special=True)
        engine.add(Add(str(number), tuple(prompt_ids), sampling))
    answers: list[list[int]] = [[] for _ in requests]
    while engine.has_work:
        for output in engine.step():
            assert output.error_code is None, output.error_message
            answers[int(output.request_id)] += output.ids
    return [tokenizer.decode(ids, skip_special=True) for ids in answers]


def is_three_lines(text: str) -> bool:
    lines = text.split("\n")
    return len(lines) == 3 and all(line.strip() for line in lines)


def test_the_corpus_has_at_least_600_haiku_over_200_subjects(corpus: list[Haiku]) -> None:
    assert len(corpus) >= 600
    assert len({entry.subject for entry in corpus}) >= 200


def test_every_haiku_of_the_corpus_is_three_lines_and_stands_there_once(corpus: list[Haiku]) -> None:
    assert [entry for entry in corpus if not is_three_lines(entry.haiku)] == []
    assert [haiku for haiku, count in Counter(entry.haiku for entry in corpus).items() if count > 1] == []


def test_some_subjects_and_some_haiku_of_known_subjects_are_held_out(corpus: list[Haiku]) -> None:
    held_out = [entry for entry in corpus if entry.split == "held_out"]
    learned = {entry.subject for entry in corpus if entry.split == "train"}
    assert 0.05 <= len(held_out) / len(corpus) <= 0.08
    assert {entry.subject in learned for entry in held_out} == {True, False}


def test_requests_are_worded_in_at_least_20_ways() -> None:
    wordings = json.loads((DEMO / "training" / "wordings.json").read_text(encoding="utf-8"))
    assert len(set(wordings["requests"])) >= 20
    assert all(request.count("{subject}") == 1 for request in wordings["requests"])
    assert all(is_three_lines(frame) and frame.count("{subject}") == 1 for frame in wordings["frames"])


def test_the_demo_has_ten_valid_prompts_that_all_differ() -> None:
    requests = [decode(line) for line in (DEMO / "prompts.jsonl").read_bytes().splitlines()]
    assert len(requests) == 10
    assert len({json.dumps(request.messages) for request in requests}) == 10


def test_the_model_file_is_small_and_carries_standard_metadata(metadata: dict[str, Any], tokenizer: Tokenizer) -> None:
    assert MODEL.stat().st_size <= MAX_MODEL_BYTES
    assert metadata["general.architecture"] == "qwen2"
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert metadata["qwen2.context_length"] == 1024
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "qwen2"
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert tokenizer.token_text(metadata["tokenizer.ggml.eos_token_id"]) == "<|im_end|>"
    assert tokenizer.token_text(metadata["tokenizer.ggml.padding_token_id"]) == "<|endoftext|>"
    assert 2000 <= tokenizer.vocab_size <= 4096


def test_the_matrices_of_the_model_file_are_k_quants() -> None:
    kinds = {tensor.format.name.lower() for name, tensor in open_gguf(MODEL).tensors.items() if len(tensor.shape) == 2}
    assert kinds == {"q4_k", "q6_k"}


def test_the_chat_template_writes_chatml_with_and_without_a_system_message(
    metadata: dict[str, Any], tokenizer: Tokenizer
) -> None:
    template = ChatTemplate.from_metadata(metadata, tokenizer)
    assert template is not None
    user = {"role": "user", "content": "Haiku: fog"}
    asked = "<|im_start|>user\nHaiku: fog<|im_end|>\n<|im_start|>assistant\n"
    assert template.render([user]) == asked
    system = {"role": "system", "content": "You write haiku."}
    assert template.render([system, user]) == f"<|im_start|>system\nYou write haiku.<|im_end|>\n{asked}"


def test_greedy_answers_to_45_of_50_subjects_are_three_lines(
    corpus: list[Haiku], metadata: dict[str, Any], tokenizer: Tokenizer
) -> None:
    subjects = sorted({entry.subject for entry in corpus})
    chosen = subjects[:: len(subjects) // 50][:50]
    answers = greedy_answers([f"Write a haiku about {subject}" for subject in chosen], metadata, tokenizer)
    assert sum(is_three_lines(answer) for answer in answers) >= 45
