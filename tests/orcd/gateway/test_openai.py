"""OpenAI's SDK and LangChain against `orcd gateway` and a worker with the first layer of the model that ships."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tasks.local.redis_server import RedisServer
from tests.conftest import DEMO_MODEL, wait_until
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess

MODEL = DEMO_MODEL.stem
MESSAGES: Any = [{"role": "user", "content": "Write a haiku about rain"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 24}


@pytest.fixture(scope="module")
def system(shallow_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of a Redis with a worker, and the folder of its gateways."""
    folder = tmp_path_factory.mktemp("gateways")
    with RedisServer() as server, WorkerProcess(server.url, shallow_chat_model, folder, **slow_engine(folder, 0.0)):
        yield server.url, folder


@pytest.fixture(scope="module")
def sdk(system: tuple[str, Path]) -> Iterator[openai.OpenAI]:
    with (
        GatewayProcess(system[0], "--files-dir", str(system[1])) as gateway,
        openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0, timeout=60) as sdk,
    ):
        yield sdk


def test_the_model_is_listed(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL]
    assert sdk.models.retrieve(MODEL).id == MODEL


def test_a_stream_has_the_text_and_usage_of_the_whole_answer(system: tuple[str, Path], sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**CHAT)
    with held_engine(system[1]):
        stream = iter(sdk.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
        chunks = [next(stream)]
        while not any(choice.delta.content for choice in chunks[-1].choices):
            chunks.append(next(stream))
    chunks += stream  # what is made once the beginning was here
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == answer.choices[0].message.content != ""
    assert sum(bool(text) for text in texts) > 1
    usage = chunks[-1].usage
    assert answer.usage is not None and usage is not None and answer.usage.completion_tokens > 4
    assert usage.model_copy(update={"prompt_tokens_details": answer.usage.prompt_tokens_details}) == answer.usage


def test_an_answer_says_how_much_of_its_prompt_was_cached(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {**CHAT, "messages": [{"role": "user", "content": "A haiku about frogs and rain " * 5}]}
    before, after = (sdk.chat.completions.create(**asked).usage for _ in range(2))
    assert before is not None and before.prompt_tokens_details is not None
    assert after is not None and after.prompt_tokens_details is not None
    assert (before.prompt_tokens_details.cached_tokens or 0) < (after.prompt_tokens_details.cached_tokens or 0)
    assert after.prompt_tokens - 17 < (after.prompt_tokens_details.cached_tokens or 0) < after.prompt_tokens


def test_choices_differ_and_a_seed_gives_them_again(sdk: openai.OpenAI) -> None:
    drawn = {**CHAT, "temperature": 1.5, "seed": 7, "n": 3}
    first, second = (sdk.chat.completions.create(**drawn).choices for _ in range(2))
    texts = [choice.message.content for choice in first]
    assert len(set(texts)) > 1
    assert [choice.index for choice in first] == [0, 1, 2]
    assert [choice.message.content for choice in second] == texts


def test_each_token_has_its_log_probabilities(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    listed = answer.choices[0].logprobs
    assert listed is not None and listed.content is not None and answer.usage is not None
    assert "".join(each.token for each in listed.content).startswith(str(answer.choices[0].message.content))
    for each in listed.content:
        assert len(each.top_logprobs) == 2
        assert each.logprob == each.top_logprobs[0].logprob <= 0, "greedy takes the most probable"


def test_an_answer_ends_before_a_stop_string(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(**CHAT).choices[0].message.content
    assert whole is not None
    stop = whole.split()[2]
    stopped = sdk.chat.completions.create(**CHAT, stop=[stop]).choices[0]
    assert stopped.message.content == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("streams", [False, True])
def test_mistakes_are_the_classes_of_the_sdk(sdk: openai.OpenAI, streams: bool) -> None:
    long = [{"role": "user", "content": "rain " * 20_000}]
    for changes, kind, code in (
        ({"model": "other"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_request"),
        ({"messages": long}, openai.BadRequestError, "context_length_exceeded"),
    ):
        with pytest.raises(kind) as caught:
            sdk.chat.completions.create(**{**CHAT, **changes, "stream": streams})
        assert caught.value.code == code


def test_a_batch_runs_to_its_end(sdk: openai.OpenAI) -> None:
    url = "/v1/chat/completions"
    line = json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": CHAT})
    file = sdk.files.create(file=("in.jsonl", line.encode()), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
    wait_until(lambda: sdk.batches.retrieve(batch.id).status == "completed", 60)
    output = sdk.batches.retrieve(batch.id).output_file_id
    assert output is not None
    body = json.loads(sdk.files.content(output).text)["response"]["body"]
    assert body["choices"][0]["message"] == sdk.chat.completions.create(**CHAT).choices[0].message.model_dump(
        include={"role", "content", "refusal"}
    )


def test_a_response_whose_gateway_is_killed_goes_on_at_another(system: tuple[str, Path], sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "Write a long story", "extra_body": {"ignore_eos": True}}
    texts: list[str] = []
    response_id, last = "", -1
    with (
        held_engine(system[1]),
        GatewayProcess(system[0]) as gateway,
        openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as cut,
        pytest.raises((openai.APIConnectionError, httpx.TransportError)),
    ):
        for event in cut.responses.create(**asked, background=True, stream=True, max_output_tokens=300):
            last = event.sequence_number
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.output_text.delta":
                texts.append(event.delta)
                if len(texts) == 1:
                    gateway.process.kill()
    for event in sdk.responses.retrieve(response_id, stream=True, starting_after=last):
        assert event.sequence_number > last
        if event.type == "response.output_text.delta":
            texts.append(event.delta)
    whole = sdk.responses.retrieve(response_id)
    assert "".join(texts) == whole.output_text
    assert whole.usage is not None and whole.usage.output_tokens == 300


def test_langchain_gives_the_same_answer(sdk: openai.OpenAI) -> None:
    expected = sdk.chat.completions.create(**CHAT).choices[0].message.content
    url = str(sdk.base_url)
    langchain = pytest.importorskip("langchain_openai", reason="is among the dev dependencies only")
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(timeout=60))
        chat = langchain.ChatOpenAI(
            base_url=url, api_key="none", http_client=client, model=MODEL, temperature=0, max_completion_tokens=24
        )
        assert chat.invoke(MESSAGES).content == expected
        assert "".join(chunk.content for chunk in chat.stream(MESSAGES)) == expected
