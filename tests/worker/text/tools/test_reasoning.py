"""Which reasoning a template knows, and whether a prompt has opened it."""

from __future__ import annotations

import pytest

from tests.worker.text.vocabularies import bpe_metadata, tokenizer_of
from worker.text import tokenizer
from worker.text.tools.reasoning import ReasoningTags, tags_of

THINK = ReasoningTags("<think>", "</think>")
CHANNEL = ReasoningTags("<|channel>thought", "<channel|>", label="thought")


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        ("{{ '<think>\\n' + reasoning + '\\n</think>' }}", THINK),
        ("{% set content = content.split('</think>')[-1] %}", THINK),
        ("{{ '[THINK]' + block.thinking + '[/THINK]' }}", ReasoningTags("[THINK]", "[/THINK]")),
        ("{{ '<|channel>thought\\n' + thinking + '\\n<channel|>' }}", CHANNEL),
        ("{{ message.content }}", None),
    ],
)
def test_a_template_knows_the_tags_that_it_names(template: str, tags: ReasoningTags | None) -> None:
    assert tags_of(template) == tags


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\nLet me", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_the_end_of_a_prompt_says_whether_it_has_opened_reasoning(prompt: str, is_open: bool) -> None:
    in_words = tokenizer_of("qwen3-q4_1")
    as_control = tokenizer.from_metadata(
        bpe_metadata("a b", control=("<|im_start|>", "<|im_end|>", "<think>", "</think>"))
    )
    for subject in (in_words, as_control):
        assert THINK.is_open(subject, subject.encode(prompt, parse_special=True)) is is_open


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("<|turn>model\n<|channel>thought\n", True),
        ("<|turn>model\n<|channel>thought\n<channel|>", False),
        ("<|turn>model\n", False),
    ],
)
def test_a_channel_is_opened_by_a_token_and_its_name(prompt: str, is_open: bool) -> None:
    for control in (("<|turn>",), ("<|turn>", "<|channel>", "<channel|>")):
        subject = tokenizer.from_metadata(bpe_metadata("a b", control=control))
        assert CHANNEL.is_open(subject, subject.encode(prompt, parse_special=True)) is is_open
