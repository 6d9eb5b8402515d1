"""Which prompts take long, and that they are encoded all the same; with a real text process."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orcd.errors import ContextLengthExceeded, InvalidRequest, ModelLoadFailed, OrcdError
from orcd.request import Request, parse
from tasks.dispatch import prompt_encoder
from tasks.dispatch.prompt_encoder import SHORT_BYTES, PromptEncoder, TakesLong
from tasks.dispatch.prompt_encoder import SHORT_RENDER_S as MOMENT_S
from tests.models.files import SMALL
from tests.tasks.dispatch.byte_model import PATIENCE_S, READY
from worker.model.gguf import open_gguf
from worker.settings import Settings
from worker.text import tokenizer as tokenizers

LARGE = msgspec.structs.replace(READY, vocab_size=10**6, max_sequence_tokens=10**6)
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SLOW = "{% for i in range(99999) %}{% for j in range(8) %}{% endfor %}{% endfor %}"


@pytest.fixture
def encoder(demo_model: Path, tmp_path: Path) -> Iterator[PromptEncoder]:
    """The demo model's, with a template that takes as long as the messages say."""
    file = tmp_path / "template.jinja"
    file.write_text(
        f"{{% if messages[0].content == 'loop' %}}{LOOP}{{% endif %}}"
        f"{{% for m in messages if m.content == 'slow' %}}{SLOW}{{% endfor %}}"
        "{% for m in messages %}{{ m.content * (m.times or 1) }}{% endfor %}"
    )
    with closing(PromptEncoder.load(Settings(model=str(demo_model), chat_template=str(file)))) as encoder:
        yield encoder


def _chat(content: str, **fields: Any) -> Request:
    return parse({"messages": [{"role": "user", "content": content, **fields}]})


TEXT = "the old pond " * (SHORT_BYTES // 13 + 1)


@pytest.mark.parametrize("request_", [parse({"prompt": TEXT}), _chat(TEXT), _chat("the old pond ", times=9000)])
def test_a_long_text_is_encoded_by_the_other_call_to_the_ids_that_it_has(
    encoder: PromptEncoder, demo_model: Path, request_: Request
) -> None:
    """F16: whether it is long by itself, or is made long by the template."""
    with pytest.raises(TakesLong):
        encoder.encode(request_, LARGE)
    text = request_.prompt or "the old pond " * (9000 if "times" in (request_.messages or [{}])[0] else len(TEXT) // 13)
    own = tokenizers.from_metadata(open_gguf(demo_model).metadata)
    expected = own.encode(text, add_special=request_.prompt is not None, parse_special=True)
    assert encoder.encode_long(request_, LARGE).ids == expected


def test_a_long_text_beyond_the_context_is_refused_with_both_lengths(encoder: PromptEncoder) -> None:
    """F16."""
    with pytest.raises(ContextLengthExceeded, match=r"tokens, .* may have 64; shorten"):
        encoder.encode_long(parse({"prompt": TEXT}), READY)


def test_a_short_text_is_short_whatever_else_is_asked(encoder: PromptEncoder) -> None:
    assert encoder.encode(parse({"prompt": "x" * SHORT_BYTES}), LARGE).ids
    assert encoder.encode(parse({"prompt_token_ids": [1] * (SHORT_BYTES + 1)}), LARGE).ids
    assert encoder.encode_long(parse({"prompt": "x"}), LARGE).ids == encoder.encode(parse({"prompt": "x"}), LARGE).ids


def test_messages_that_the_template_takes_long_for_may_take_a_little_longer(encoder: PromptEncoder) -> None:
    """F16: a template that hangs ends that job; until then it was in nobody's way for more than a moment."""
    assert encoder._short._wall_limit_s == prompt_encoder.SHORT_RENDER_S  # longer in tests, but for this one
    encoder._short._wall_limit_s = MOMENT_S
    start = time.monotonic()
    with pytest.raises(TakesLong):
        encoder.encode(_chat("loop"), LARGE)
    print(f"found to take long after {time.monotonic() - start:.2f} s")
    encoder._short._wall_limit_s = PATIENCE_S
    assert encoder.encode(_chat("hi"), LARGE).ids
    with pytest.raises(InvalidRequest, match=r"messages: .* takes longer than \d s"):
        encoder.encode_long(_chat("loop"), LARGE)
    assert encoder.encode_long(_chat("hi"), LARGE).ids == encoder.encode(_chat("hi"), LARGE).ids


def test_an_encoder_that_is_interrupted_gives_up_at_once(encoder: PromptEncoder) -> None:
    encoder.encode_long(_chat("hi"), LARGE)
    encoder.interrupt()
    with pytest.raises(OrcdError):
        encoder.encode_long(_chat("loop"), LARGE)
    assert encoder.encode(_chat("hi"), LARGE).ids


def test_a_process_that_was_started_early_is_the_one_that_is_used(encoder: PromptEncoder) -> None:
    encoder.start()
    pid = encoder._short.pid
    assert pid is not None
    encoder.encode(_chat("hi"), LARGE)
    assert encoder._short.pid == pid
    os.kill(pid, signal.SIGKILL)
    assert encoder.encode(_chat("hi"), LARGE).ids


def test_a_long_text_keeps_what_it_spells_too(encoder: PromptEncoder, demo_model: Path) -> None:
    own = tokenizers.from_metadata(open_gguf(demo_model).metadata)
    spelling = own.token_text(own.eos_id)
    message = {"role": "user", "content": TEXT + spelling}
    request = parse({"messages": [message], "special_tokens_in_content": "escape"})
    expected = own.encode(TEXT + spelling, add_special=False, parse_special=False)
    assert encoder.encode_long(request, LARGE).ids == expected
    assert own.eos_id not in expected


@pytest.mark.parametrize("name", ["demo", "llama2-q4_0"])
def test_no_long_text_is_encoded_with_the_vocabulary_of_a_file_that_has_replaced_the_models(
    name: str, demo_model: Path, tmp_path: Path
) -> None:
    """Its ids would be those of other texts. The same model under a new file is no other one."""
    model, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    shutil.copy(demo_model, model)
    with closing(PromptEncoder.load(Settings(model=str(model)))) as encoder:
        shutil.copy(SMALL.get(name, demo_model), other)
        other.replace(model)
        if name == "demo":
            assert len(encoder.encode_long(parse({"prompt": TEXT}), LARGE).ids) > 100
        else:
            with pytest.raises(ModelLoadFailed, match="has changed since the worker started"):
                encoder.encode_long(parse({"prompt": TEXT}), LARGE)
