"""Requests become the ids that the engine is given, or an error that names the field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import ContextLengthExceeded, InvalidRequest, ModelLoadFailed
from orcd.request import Request, parse
from tasks.dispatch.prompt_encoder import PromptEncoder
from tests.tasks.dispatch.byte_model import ENCODER, END_ID, READY, START_ID, TOKENIZER
from tests.worker.tiny_model import write_tiny_model
from worker import contract
from worker.model.gguf import open_gguf
from worker.settings import Settings
from worker.text import tokenizer as tokenizers
from worker.text.chat_template import ChatTemplate
from worker.text.detokenizer import TextDelta
from worker.text.tools.answer_parts import CallDelta


def _request(**fields: Any) -> Request:
    return parse({"prompt": "pond", **fields})


CHAT = parse({"messages": [{"role": "user", "content": "hi"}]})


MakeEncoder = Callable[..., PromptEncoder]


@pytest.fixture
def make_encoder() -> Iterator[MakeEncoder]:
    """Encoders of the byte model, with another template."""
    made: list[PromptEncoder] = []

    def make(template: ChatTemplate) -> PromptEncoder:
        made.append(PromptEncoder(TOKENIZER, template))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


def _sampling(**fields: Any) -> contract.Sampling:
    return ENCODER.encode(_request(**fields), READY).sampling


def test_what_would_end_an_answer_and_cannot_be_drawn_is_left_out() -> None:
    """Of a tokenizer.json with more tokens than the model: each request was refused for its stop_token_ids."""
    assert END_ID in _sampling().stop_token_ids
    ready = msgspec.structs.replace(READY, vocab_size=END_ID)
    assert ENCODER.encode(_request(stop_token_ids=[5]), ready).sampling.stop_token_ids == (5,)
    with pytest.raises(InvalidRequest, match="the prompt's text: ids must be below"):
        ENCODER.encode(_request(prompt="<|im_end|>"), ready)


def test_a_prompt_is_encoded_as_it_stands_with_its_control_tokens() -> None:
    assert ENCODER.encode(_request(prompt="<|im_start|>hi"), READY).ids == [START_ID, *b"hi"]


def test_messages_go_through_the_chat_template_and_leave_the_answer_open() -> None:
    prompt = ENCODER.encode(parse({"messages": [{"role": "user", "content": "hi"}]}), READY)
    assert prompt.ids == [START_ID, *b"user:hi", END_ID, START_ID, *b"assistant:"]


def test_content_in_parts_is_text_for_a_template_that_takes_text() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    prompt = ENCODER.encode(parse({"messages": [{"role": "user", "content": parts}]}), READY)
    assert prompt.ids == [START_ID, *b"user:h\ni", END_ID, START_ID, *b"assistant:"]


@pytest.mark.parametrize(("way", "ids"), [("escape", [*b"<|im_end|>"]), ("parse", [END_ID])])
def test_a_control_token_spelt_in_a_message_is_text_where_that_is_asked_for(way: str, ids: list[int]) -> None:
    fields = {"messages": [{"role": "user", "content": "<|im_end|>"}], "special_tokens_in_content": way}
    prompt = ENCODER.encode(parse(fields), READY)
    assert prompt.ids == [START_ID, *b"user:", *ids, END_ID, START_ID, *b"assistant:"]


def test_a_message_can_be_gone_on_with() -> None:
    fields = {"messages": [{"role": "assistant", "content": "hi"}], "add_generation_prompt": False}
    assert ENCODER.encode(parse({**fields, "continue_final_message": True}), READY).ids == [
        START_ID,
        *b"assistant:hi",
    ]


def test_tools_and_variables_reach_the_template() -> None:
    encoder = PromptEncoder(TOKENIZER, ChatTemplate("{{ tools[0].function.name }} {{ effort }}"))
    function = {"type": "function", "function": {"name": "weather"}}
    fields = {"messages": [{"role": "user"}], "tools": [function], "chat_template_kwargs": {"effort": "low"}}
    assert encoder.encode(parse(fields), READY).ids == [*b"weather low"]
    encoder.close()


def test_calls_and_reasoning_are_looked_for_as_the_template_shows_and_the_request_has_tools(
    make_encoder: MakeEncoder,
) -> None:
    source = """{{ '<think>' if x }}{{ '</think>' if x }}{{ '<tool_call>{"name": "' if x }}hi"""
    encoder = make_encoder(ChatTemplate(source))
    answer = [*b'<think>hm</think><tool_call>{"name": "f"}']
    chat: dict[str, Any] = {"messages": [{"role": "user"}]}
    function = {"type": "function", "function": {"name": "f"}}

    def read(**fields: Any) -> TextDelta:
        return encoder.encode(parse(fields), READY).detokenizer().feed(answer)

    assert read(**chat, tools=[function]) == TextDelta("", len(answer), analysis="hm", calls=(CallDelta(0, "f", "{}"),))
    assert read(**chat).text == '<tool_call>{"name": "f"}'
    assert read(prompt="x", tools=[function]).text == bytes(answer).decode()


def test_token_ids_are_used_untouched() -> None:
    assert ENCODER.encode(parse({"prompt_token_ids": [1, 258, 0]}), READY).ids == [1, 258, 0]


def test_messages_for_a_model_without_a_template_say_to_send_a_prompt() -> None:
    refusal = InvalidRequest("messages: the model has no chat template")
    encoder = PromptEncoder(TOKENIZER, refusal)
    assert encoder.template_problem == refusal.message
    with pytest.raises(InvalidRequest, match="messages: the model has no chat template"):
        encoder.encode(CHAT, READY)
    assert encoder.encode(_request(), READY).ids == [*b"pond"]


def test_messages_that_the_template_refuses_are_the_callers_mistake(make_encoder: MakeEncoder) -> None:
    template = ChatTemplate("{{ raise_exception('no system role') }}")
    with pytest.raises(InvalidRequest, match=r"messages: .*no system role"):
        make_encoder(template).encode(parse({"messages": [{"role": "system", "content": "hi"}]}), READY)


def test_messages_of_which_the_template_makes_nothing_are_refused(make_encoder: MakeEncoder) -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        make_encoder(ChatTemplate("")).encode(parse({"messages": [{"role": "user"}]}), READY)


@pytest.mark.parametrize("field", ["prompt_token_ids", "logit_bias"])
def test_ids_beyond_the_vocabulary_are_refused_by_name(field: str) -> None:
    fields: dict[str, Any] = {"logit_bias": {259: 1.0}} if field == "logit_bias" else {"prompt_token_ids": [1, 259]}
    request = parse({**({"prompt": "x"} if field == "logit_bias" else {}), **fields})
    with pytest.raises(InvalidRequest, match=f"{field}: .*259"):
        ENCODER.encode(request, READY)


def test_the_last_id_of_the_vocabulary_is_allowed() -> None:
    prompt = ENCODER.encode(parse({"prompt_token_ids": [258], "logit_bias": {258: 1.0}}), READY)
    assert prompt.sampling.logit_bias == {258: 1.0}


def test_a_prompt_must_leave_room_for_one_token() -> None:
    assert len(ENCODER.encode(_request(prompt="x" * 63), READY).ids) == 63
    with pytest.raises(ContextLengthExceeded, match=r"64 tokens.* 64; shorten"):
        ENCODER.encode(_request(prompt="x" * 64), READY)


def test_an_answer_that_was_asked_for_must_fit_beside_the_prompt() -> None:
    assert ENCODER.encode(_request(prompt="x" * 60, max_tokens=4), READY).sampling.max_tokens == 4
    with pytest.raises(ContextLengthExceeded, match=r"60 tokens and max_tokens is 5.* 64; .*lower max_tokens"):
        ENCODER.encode(_request(prompt="x" * 60, max_tokens=5), READY)


@pytest.mark.parametrize(
    "request_", [_request(prompt="x" * 65), parse({"messages": [{"role": "user", "content": "x" * 47}]})]
)
def test_what_cannot_fit_is_refused_by_the_tokens_that_it_has_at_least(request_: Request) -> None:
    """F16: before ids are made of it; what a chat template writes no less than a prompt."""
    with pytest.raises(ContextLengthExceeded, match=r"at least 65 tokens, .* may have 64; shorten"):
        ENCODER.encode(request_, READY)


def test_without_max_tokens_the_context_is_the_limit() -> None:
    assert _sampling().max_tokens == READY.max_sequence_tokens
    assert _sampling(max_tokens=7).max_tokens == 7


def test_the_models_end_tokens_stop_an_answer_unless_they_are_ignored() -> None:
    assert _sampling(stop_token_ids=[3]).stop_token_ids == (3, END_ID)
    assert _sampling(stop_token_ids=[3], ignore_eos=True).stop_token_ids == (3,)
    assert _sampling(ignore_eos=True).stop_token_ids == ()


def test_every_sampling_option_reaches_the_engine() -> None:
    options: dict[str, Any] = {
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 11,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {4: -2.0},
        "seed": 2**63 - 1,
        "stop_token_ids": [5],
        "logprobs": 0,
        "bad_words": ["a"],
        "prompt_logprobs": 3,
    }
    sampling = _sampling(**options)
    expected = options | {"stop_token_ids": (5, END_ID), "bad_words": ((*b"a",),)}
    assert {name: getattr(sampling, name) for name in contract.Sampling.__struct_fields__} == expected


def test_a_bad_word_that_the_model_has_no_ids_for_is_refused_by_name() -> None:
    request = _request(bad_words=["<|im_end|>"])
    assert ENCODER.encode(request, READY).sampling.bad_words == ((END_ID,),)
    with pytest.raises(InvalidRequest, match=r"bad_words: ids must be below .* 258"):
        ENCODER.encode(request, msgspec.structs.replace(READY, vocab_size=258))


def test_stop_strings_are_found_in_the_answer_and_never_in_the_prompt() -> None:
    prompt = ENCODER.encode(_request(prompt="the end", stop=["end"]), READY)
    detokenizer = prompt.detokenizer()
    delta = detokenizer.feed(list(b"an end"))
    assert (delta.text, delta.stopped) == ("an ", True)
    assert prompt.detokenizer() is not detokenizer, "every choice has its own"


def test_a_stop_string_within_min_tokens_ends_nothing() -> None:
    detokenizer = ENCODER.encode(_request(prompt="x", stop=["end"], min_tokens=4), READY).detokenizer()
    delta = detokenizer.feed(list(b"end end"))
    assert (delta.text, delta.stopped) == ("end ", True)


def test_the_text_of_an_answer_is_made_as_the_request_says() -> None:
    fields: dict[str, Any] = {"stop": ["end"], "include_stop_str_in_output": True, "skip_special_tokens": False}
    detokenizer = ENCODER.encode(_request(prompt="x", **fields), READY).detokenizer()
    assert detokenizer.feed([START_ID, *b"an end here"]).text == "<|im_start|>an end"


@settings(max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=15))
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    assert TOKENIZER.decode(ENCODER.encode(_request(prompt=text), READY).ids) == text


def test_an_encoder_is_loaded_from_the_model_alone(demo_model: Path) -> None:
    encoder = PromptEncoder.load(Settings(model=str(demo_model)))
    ids = encoder.encode(_request(prompt="old pond"), msgspec.structs.replace(READY, vocab_size=10**6)).ids
    assert tokenizers.from_metadata(open_gguf(demo_model).metadata).decode(ids, skip_special=True) == "old pond"


def test_a_model_without_a_vocabulary_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.ggml\.model is missing.*--tokenizer"):
        PromptEncoder.load(Settings(model=str(write_tiny_model(tmp_path / "tiny.gguf"))))


def test_a_tokenizer_json_that_is_not_there_is_named(demo_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"gone\.json"):
        PromptEncoder.load(Settings(model=str(demo_model), tokenizer=str(tmp_path / "gone.json")))


def _with_template(model: Path, path: Path, template: bytes) -> Settings:
    """Settings for a copy of a model whose chat template is another."""
    own = open_gguf(model).metadata["tokenizer.chat_template"].encode()
    path.write_bytes(model.read_bytes().replace(own, template.ljust(len(own))))
    return Settings(model=str(path))


def test_a_broken_template_in_the_model_file_leaves_prompts_working(demo_model: Path, tmp_path: Path) -> None:
    encoder = PromptEncoder.load(_with_template(demo_model, tmp_path / "broken.gguf", b"{% for"))
    ready = msgspec.structs.replace(READY, vocab_size=10**6)
    assert encoder.encode(_request(), ready).ids
    with pytest.raises(InvalidRequest, match=r"messages: .*not a valid template.*send a prompt.*--chat-template FILE"):
        encoder.encode(CHAT, ready)


def test_a_template_in_a_file_replaces_the_models_own(demo_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}old {{ m.content }}{% endfor %}")
    settings = _with_template(demo_model, tmp_path / "broken.gguf", b"{% for")
    with closing(PromptEncoder.load(replace(settings, chat_template=str(file)))) as encoder:
        assert encoder.template_problem is None
        ready = msgspec.structs.replace(READY, vocab_size=10**6)
        ids = encoder.encode(parse({"messages": [{"role": "user", "content": "pond"}]}), ready).ids
    assert tokenizers.from_metadata(open_gguf(demo_model).metadata).decode(ids) == "old pond"


@pytest.mark.parametrize(("text", "said"), [(None, "cannot be read"), ("{% for", "not a valid template")])
def test_a_template_file_that_cannot_be_used_stops_the_worker_by_name(
    demo_model: Path, tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "template.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ModelLoadFailed, match=rf"template\.jinja.*{said}"):
        PromptEncoder.load(Settings(model=str(demo_model), chat_template=str(file)))
