"""Conversations with tools through OpenAI's SDK, a gateway, Redis, and all of a worker but its engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import msgspec
import openai
import pytest
import redis

from orcd.gateway.settings import GatewaySettings
from orcd.request import Request
from orcd.store import schema
from orcd.store.claim import Claim
from tasks.dispatch import prompt_encoder
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.prompt_encoder import PromptEncoder
from tests.orcd.gateway.conftest import running
from tests.orcd.job_writer import MakeStore
from tests.tasks import tool_templates as templates
from tests.tasks.dispatch.byte_model import PATIENCE_S, READY
from tests.worker.text.tools.families import ANSWERS, CALLS, FIRST, SECOND, Answer
from worker import contract
from worker.text.chat_template import ChatTemplate

LIMITS = msgspec.structs.replace(READY, max_sequence_tokens=8192, vocab_size=1024)
TEMPLATES = {
    "hermes": templates.CHATML,
    "qwen3": templates.THINKING,
    "llama 3": templates.LLAMA3,
    "mistral, names": templates.MISTRAL,
    "phi 4": templates.PHI4,
    "harmony": templates.HARMONY,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": call.name, "parameters": {"type": "object"}}} for call in CALLS
]
QUESTION: list[Any] = [{"role": "user", "content": "Rain?"}]
RESULTS = ["dry", "41 ☔"]


class ScriptedWorker:
    """Runs jobs as a worker does; for its engine it says an answer with calls, and behind their results ``No rain.``"""

    def __init__(self, answer: Answer, template: str, connection: redis.Redis, make_store: MakeStore) -> None:
        self.prompts: list[str] = []
        self._answer = answer
        self._redis = connection
        self._store = make_store()
        self._store.renew({}, is_ready=True)
        self._encoder = PromptEncoder(answer.tokenizer, ChatTemplate(template))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._encoder.close()

    def _work(self) -> None:
        while not self._stopping.wait(0.01):
            queued: Any = self._redis.zrange(schema.QUEUED, 0, 0)
            for job_id in queued:
                claim = self._store.claim([str(job_id, "ascii")])[0]
                assert isinstance(claim, Claim)
                self._run(claim)

    def _run(self, claim: Claim) -> None:
        assert isinstance(claim.request, Request)
        tokenizer = self._answer.tokenizer
        prompt = self._encoder.encode(claim.request, LIMITS)
        self.prompts.append(tokenizer.decode(prompt.ids))
        job = ActiveJob(claim, prompt, LIMITS, lambda outcome: None)
        has_results = any(message["role"] == "tool" for message in claim.request.messages or ())
        last = ("<|channel|>final<|message|>" if self._answer.syntax is None else "") + "No rain."
        ids = tokenizer.encode(last, add_special=False, parse_special=True) if has_results else self._answer.ids
        job.add()
        for start in range(0, len(ids), 5):
            taken = tuple(ids[start : start + 5])
            output = contract.TokenOutput(job.request_id, 0, taken, "stop" if start + 5 >= len(ids) else None)
            abort = job.process(output)
            [written] = self._store.append([job.take_append()])
            assert written.status == "appended"
            if abort is not None:
                return


Converse = Callable[[str], tuple[ScriptedWorker, openai.OpenAI]]


@pytest.fixture
def converse(
    redis_url: str, connection: redis.Redis, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Converse]:
    """Starts a worker that answers as one of the families, and a gateway."""
    monkeypatch.setattr(prompt_encoder, "SHORT_RENDER_S", PATIENCE_S)
    with running(GatewaySettings(redis_url=redis_url)) as url, ExitStack() as opened:

        def converse(family: str) -> tuple[ScriptedWorker, openai.OpenAI]:
            worker = ScriptedWorker(ANSWERS[family], TEMPLATES[family], connection, make_store)
            opened.enter_context(closing(worker))
            sdk = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
            return worker, opened.enter_context(sdk)

        yield converse


@pytest.mark.parametrize("family", TEMPLATES)
def test_two_calls_their_results_and_an_answer(family: str, converse: Converse) -> None:
    answer = ANSWERS[family]
    worker, sdk = converse(family)
    [choice] = sdk.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS).choices
    message = choice.message
    assert choice.finish_reason == "tool_calls"
    assert (message.content or "") == answer.shown
    assert (getattr(message, "reasoning_content", None) or "") == answer.analysis
    calls: list[Any] = list(message.tool_calls or ())
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", FIRST),
        ("add_2", SECOND),
    ]
    for call in CALLS:
        assert call.name in worker.prompts[0], "the tools are in the prompt"

    results = [
        {"role": "tool", "tool_call_id": call.id, "content": text} for call, text in zip(calls, RESULTS, strict=True)
    ]
    conversation: list[Any] = [*QUESTION, message.model_dump(exclude_none=True), *results]
    [last] = sdk.chat.completions.create(model="demo", messages=conversation, tools=TOOLS).choices
    assert (last.message.content, last.finish_reason, last.message.tool_calls) == ("No rain.", "stop", None)
    assert all(text in worker.prompts[1] for text in (*RESULTS, CALLS[0].arguments))


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_has_one_call_where_several_at_once_are_not_wanted(family: str, converse: Converse) -> None:
    """As LangChain's ``with_structured_output`` and others ask for it who can only use one."""
    _, sdk = converse(family)
    [choice] = sdk.chat.completions.create(
        model="demo", messages=QUESTION, tools=TOOLS, parallel_tool_calls=False
    ).choices
    [call] = choice.message.tool_calls or ()
    assert call.type == "function"
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == FIRST
    given: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]
    response = sdk.responses.create(model="demo", input="Rain?", tools=given, parallel_tool_calls=False)
    assert [item.name for item in response.output if item.type == "function_call"] == ["weather"]
    assert (response.parallel_tool_calls, response.status) == (False, "completed")


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_stream_has_the_same_calls_piece_by_piece(family: str, converse: Converse) -> None:
    answer = ANSWERS[family]
    _, sdk = converse(family)
    texts, arguments, names, reasons = "", ["", ""], [], []
    for chunk in sdk.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS, stream=True):
        [choice] = chunk.choices
        texts += choice.delta.content or ""
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            assert call.function is not None
            arguments[call.index] += call.function.arguments or ""
            names += [call.function.name] if call.id else []
    assert (texts, names, reasons[-1]) == (answer.shown, ["weather", "add_2"], "tool_calls")
    assert [json.loads(text) for text in arguments] == [FIRST, SECOND]
    assert len(reasons) > 10


@pytest.mark.parametrize("family", ["hermes", "harmony"])
def test_a_response_has_the_same_calls_as_items(family: str, converse: Converse) -> None:
    _, sdk = converse(family)
    tools: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]
    events = list(sdk.responses.create(model="demo", input="Rain?", tools=tools, stream=True))
    done = [event.item for event in events if event.type == "response.output_item.done"]
    last = events[-1]
    assert last.type == "response.completed"
    calls = [item for item in last.response.output if item.type == "function_call"]
    assert calls == [item for item in done if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", FIRST), ("add_2", SECOND)]
    given: list[Any] = [{"role": "user", "content": "Rain?"}, *(item.model_dump() for item in last.response.output)]
    given += [{"type": "function_call_output", "call_id": call.call_id, "output": "dry"} for call in calls]
    assert sdk.responses.create(model="demo", input=given, tools=tools).output_text == "No rain."
