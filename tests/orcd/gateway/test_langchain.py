from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest

from tests.orcd.answering_worker import AnsweringWorker, FailingWorker
from tests.orcd.gateway.conftest import NO_TLS

OpenChat = Callable[..., Any]


@pytest.fixture
def open_chat(url: str) -> Iterator[OpenChat]:
    """LangChain's ChatOpenAI for the gateway; it tries nothing twice."""
    langchain_openai = pytest.importorskip("langchain_openai", reason="is among the dev dependencies only")
    with ExitStack() as opened:

        def open_chat(**fields: Any) -> Any:
            client = opened.enter_context(httpx.Client(timeout=60, verify=NO_TLS))
            fields = {"model": "demo", "max_retries": 0, **fields}
            return langchain_openai.ChatOpenAI(base_url=url, api_key="none", http_client=client, **fields)

        yield open_chat


def test_a_chat_is_answered_with_its_usage(open_chat: OpenChat, worker: AnsweringWorker) -> None:
    answer = open_chat(temperature=0.5, seed=1, stop=["x"]).invoke([("system", "Count."), ("human", "Begin.")])
    assert answer.content == " 1 2 3"
    assert answer.usage_metadata["output_tokens"] == 3
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == "demo"


def test_a_chat_streams_and_its_usage_comes_last(open_chat: OpenChat, worker: AnsweringWorker) -> None:
    chunks = list(open_chat(stream_usage=True).stream("count"))
    assert "".join(chunk.content for chunk in chunks) == " 1 2 3"
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["output_tokens"] == 3
    assert whole.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("streams", [False, True])
def test_a_chat_goes_over_responses_too(open_chat: OpenChat, worker: AnsweringWorker, streams: bool) -> None:
    chat = open_chat(use_responses_api=True)
    answers = list(chat.stream("count")) if streams else [chat.invoke("count")]
    assert "".join(str(answer.text) for answer in answers) == " 1 2 3"
    assert sum(answer.usage_metadata["output_tokens"] for answer in answers if answer.usage_metadata) == 3


def test_many_chats_run_at_once(open_chat: OpenChat, worker: AnsweringWorker) -> None:
    answers = open_chat().batch([f"count to {number}" for number in range(8)])
    assert [answer.content for answer in answers] == [" 1 2 3"] * 8


def test_errors_are_those_of_openai(open_chat: OpenChat, failing_worker: FailingWorker) -> None:
    with pytest.raises(openai.NotFoundError, match="no worker serves it"):
        open_chat(model="other").invoke("count")
    with pytest.raises(openai.BadRequestError) as caught:
        open_chat(top_p=5).invoke("count")
    assert caught.value.param == "top_p"
    with pytest.raises(openai.InternalServerError, match="does not fit"):
        open_chat().invoke("count")
    with pytest.raises(openai.APIError, match="does not fit"):
        list(open_chat().stream("count"))


def test_several_prompts_are_completed_in_one_call(url: str, worker: AnsweringWorker) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason="is among the dev dependencies only")
    with httpx.Client(timeout=60, verify=NO_TLS) as client:
        fields = {"model": "demo", "api_key": "none", "http_client": client, "max_retries": 0}
        found = langchain_openai.OpenAI(base_url=url, **fields).generate(["count", "count on"])
    assert [each.text for (each,) in found.generations] == [" 1 2 3"] * 2
    assert found.llm_output["token_usage"]["completion_tokens"] == 6
