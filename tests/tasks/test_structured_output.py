"""What is done to draws and told of prompts through the whole system: a real worker and model, real deaths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from orcd.client import Client
from orcd.errors import InvalidRequest
from orcd.events import Token
from orcd.result import Result
from tasks.local.redis_server import RedisServer
from tests.models.files import SMALL
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running
from tests.worker.text.grammar.schemas import make_schemas
from worker.model.gguf import open_gguf
from worker.text.bad_word_ids import bad_word_ids
from worker.text.tokenizer import from_metadata

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 40}, "age": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "old pond"}]
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if tools %}Call as <tool_call>
{"name": NAME, "arguments": ARGUMENTS}
</tool_call>{% endif %}<|im_start|>assistant
"""
CHANNELS = (
    "{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endfor %}"
    "<|start|>assistant"
)
"""Without the tools: the small model's context is short."""


def asked(schema: Any, seed: int, **fields: Any) -> dict[str, Any]:
    """A request for a document that fits the schema; drawn at temperature 1."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return {"prompt": "old pond", "seed": seed, "response_format": form, **fields}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the worker's engine."""
    return tmp_path_factory.mktemp("structured")


@pytest.fixture(scope="module")
def worker(shallow_model: Path, folder: Path) -> Iterator[WorkerProcess]:
    template = folder / "template.jinja"
    template.write_text(TEMPLATE)
    variables = {"ORCD_CHAT_TEMPLATE": str(template), **slow_engine(folder, 0.0)}
    with RedisServer() as server, WorkerProcess(server.url, shallow_model, folder, **variables) as worker:
        yield worker


@pytest.fixture(scope="module")
def client(worker: WorkerProcess) -> Iterator[Client]:
    with Client(worker.redis_url) as client:
        yield client


def test_every_answer_parses_and_fits_its_schema_with_as_few_tokens_as_may_be(client: Client) -> None:
    schemas = make_schemas(3, 12)
    least: list[int] = []
    for number, schema in enumerate(schemas):
        with pytest.raises(InvalidRequest, match=r"^max_tokens: 1 are too few") as refused:
            client.result(client.submit(**asked(schema, number, max_tokens=1)), timeout=60).raise_for_error()
        least.append(int(refused.value.message.rpartition(" ")[2]))
    job_ids = client.submit_many(
        [
            asked(schema, number, max_tokens=least[number] + spare)
            for number, schema in enumerate(schemas)
            for spare in (0, 40)
        ]
    )
    for number, job_id in enumerate(job_ids):
        result = client.result(job_id, timeout=60).raise_for_error()
        jsonschema.validate(json.loads(result.text), schemas[number // 2])
        assert result.schema_valid


def test_an_answer_is_the_same_alone_in_company_and_after_a_death_in_the_middle_of_a_string(
    client: Client, worker: WorkerProcess, folder: Path
) -> None:
    request = asked(PERSON, 7, max_tokens=120, n=2)
    alone = client.result(client.submit(**request), timeout=60)
    others = [asked(PERSON, seed, max_tokens=120) for seed in range(15)]
    company = client.submit_many([*others[:7], request, *others[7:]])
    assert client.result(company[7], timeout=60).choices == alone.choices
    resumed = submit_and_kill(client, worker, folder, request)
    result = client.result(resumed, timeout=60)
    assert result.choices == alone.choices
    assert client.status(resumed).attempt == 1
    for job_id in company:
        check(client.result(job_id, timeout=60))


@pytest.fixture(scope="module")
def sdk(worker: WorkerProcess) -> Iterator[openai.OpenAI]:
    with (
        GatewayProcess(worker.redis_url) as gateway,
        openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as sdk,
    ):
        yield sdk


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("asked_for", [{"prompt": "old pond"}, {"messages": MESSAGES}])
def test_an_answer_through_a_gateway_is_that_of_the_queue(
    client: Client, sdk: openai.OpenAI, asked_for: dict[str, Any], stream: bool
) -> None:
    request = {
        name: each for name, each in asked(PERSON, 7, max_tokens=120, n=2).items() if name != "prompt"
    } | asked_for
    queued = client.result(client.submit(**request), timeout=60).raise_for_error()
    create: Any = sdk.chat.completions.create if "messages" in request else sdk.completions.create
    fields = {"extra_body": {"response_format": request.pop("response_format")}, **asked_for}
    answer = create(
        model=client.workers()[0].model, temperature=1, seed=7, max_tokens=120, n=2, stream=stream, **fields
    )
    ids = {chunk.id for chunk in answer} if stream else {answer.id}
    (job_id,) = {each.partition("-")[2] for each in ids}
    assert client.result(job_id).choices == queued.choices
    check(queued)


def submit_and_kill(client: Client, worker: WorkerProcess, folder: Path, request: dict[str, Any]) -> str:
    """The id of a job in whose middle the engine dies."""
    with held_engine(folder, 30):
        job_id = client.submit(**request)
        wait_until_running(client, [job_id], 15)
        worker.kill_engine()
    return job_id


def check(result: Result) -> None:
    for choice in result.raise_for_error().choices:
        jsonschema.validate(json.loads(choice.text), PERSON)


@pytest.mark.parametrize(
    ("form", "allowed"),
    [
        ({"choice": ["spring", "autumn"]}, {"spring", "autumn"}),
        ({"regex": "[ab]{3}"}, {a + b + c for a in "ab" for b in "ab" for c in "ab"}),
        ({"grammar": 'start: "x" ("y" | "z")'}, {"xy", "xz"}),
        ({"regex": "a?"}, {"", "a"}),
    ],
)
def test_other_forms_hold_too(client: Client, form: dict[str, Any], allowed: set[str]) -> None:
    for ignore_eos in (False, True):
        fields = {"prompt": "old pond", "seed": 1, "max_tokens": 40, "ignore_eos": ignore_eos}
        result = client.result(client.submit(**fields, structured_outputs=form), timeout=60)
        assert result.text in allowed
        assert result.schema_valid


def test_a_stream_of_a_document_says_how_it_ended(client: Client) -> None:
    job_id = client.submit(**asked(PERSON, 1, max_tokens=200, logprobs=2))
    text = "".join(event.t for event in client.events(job_id) if isinstance(event, Token))
    jsonschema.validate(json.loads(text), PERSON)
    result = client.result(job_id)
    assert result.choices[0].finish_reason == "stop"
    assert all(each.logprob <= 0 for each in result.choices[0].logprobs or ())


def test_bad_words_are_in_no_answer_and_it_is_the_same_after_a_death(
    client: Client, worker: WorkerProcess, folder: Path, shallow_model: Path
) -> None:
    request: dict[str, Any] = {"prompt": "old pond", "seed": 3, "max_tokens": 200, "ignore_eos": True}
    words = sorted(set(client.result(client.submit(**request), timeout=60).text.split()))[:100]
    request["bad_words"] = words
    alone = client.result(client.submit(**request), timeout=60).raise_for_error()
    ids = alone.choices[0].token_ids
    sequences = bad_word_ids(words, from_metadata(open_gguf(shallow_model).metadata))
    assert len({len(each) for each in sequences}) > 1, "words of one token, and of several"
    assert not any(tuple(ids[at : at + len(each)]) == each for each in sequences for at in range(len(ids)))
    resumed = submit_and_kill(client, worker, folder, request)
    assert client.result(resumed, timeout=60).choices == alone.choices


def test_log_probabilities_of_a_prompt_are_the_same_each_time_and_in_the_log_once(
    client: Client, worker: WorkerProcess, folder: Path, shallow_model: Path
) -> None:
    prompt = "old pond, a frog leaps in: the sound of water"
    request = {"prompt": prompt, "seed": 1, "max_tokens": 200, "ignore_eos": True, "prompt_logprobs": 2, "n": 2}
    first = client.result(client.submit(**request), timeout=60).raise_for_error()
    first_one, *told = first.prompt_logprobs or []
    tokenizer = from_metadata(open_gguf(shallow_model).metadata)
    ids = tokenizer.encode(prompt, parse_special=True)
    assert first_one is None
    assert [(each.id, each.pieces[each.id]) for each in told if each] == [
        (e, tokenizer.token_bytes(e)) for e in ids[1:]
    ]
    assert all(each and len(each.top) == 2 and each.logprob <= max(each.top.values()) < 0 for each in told)
    resumed = submit_and_kill(client, worker, folder, request)
    again = client.result(resumed, timeout=60)
    assert (again.choices, again.prompt_logprobs) == (first.choices, first.prompt_logprobs)
    logged = [event for event in client.events(resumed) if isinstance(event, Token) and event.prompt_logprobs]
    assert [(event.choice, event.i) for event in logged] == [(0, 1)]


def test_a_hostile_grammar_is_refused_in_bounded_time_and_nobody_else_waits(client: Client, folder: Path) -> None:
    wide = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(2000)}}
    with held_engine(folder):
        other = client.submit(prompt="old pond", max_tokens=400, ignore_eos=True)
        wait_until_running(client, [other], 1)
        hostile = client.submit_many(
            [asked(wide, 1), asked({"not": {}}, 1), {"prompt": "x", "structured_outputs": {"regex": "("}}]
        )
        for job_id in hostile:
            result = client.result(job_id, timeout=60)
            assert result.error is not None
            assert result.error.code == "INVALID_REQUEST"
    assert client.result(other, timeout=60).raise_for_error().tokens_out == 400


@pytest.mark.parametrize("tool_choice", ["required", {"name": "weather"}])
def test_a_tool_that_must_be_called_is_called_with_arguments_that_fit(client: Client, tool_choice: Any) -> None:
    names = forced_calls(client, tool_choice, max_tokens=90)
    assert tool_choice == "required" or names == {"weather"}


@pytest.mark.parametrize("model", ["client", "harmony_client"])
def test_an_answer_with_a_form_may_be_calls_of_a_tool_instead(request: pytest.FixtureRequest, model: str) -> None:
    client, found = request.getfixturevalue(model), set()
    tools = [{"type": "function", "function": {"name": "clock"}}]
    for seed in range(8):
        fields = {**asked(PLACE, seed), "prompt": None, "messages": MESSAGES, "tools": tools, "max_tokens": 150}
        result = client.result(client.submit(**fields), timeout=60).raise_for_error()
        has_calls = bool(result.choices[0].tool_calls)
        assert has_calls or jsonschema.validate(json.loads(result.text), PLACE) is None
        found.add((has_calls, result.schema_valid, result.text == ""))
    assert found == {(False, True, False), (True, None, True)}


def forced_calls(client: Client, tool_choice: Any, max_tokens: int) -> set[str]:
    """The names of the tools that some answers call, which are nothing but calls whose arguments fit."""
    schemas = {"weather": PLACE, "clock": {"type": "object", "properties": {}, "additionalProperties": False}}
    tools = [{"type": "function", "function": {"name": name, "parameters": each}} for name, each in schemas.items()]
    names = set()
    for seed in range(4):
        request = {"messages": MESSAGES, "tools": tools, "tool_choice": tool_choice, "seed": seed}
        result = client.result(client.submit(**request, max_tokens=max_tokens), timeout=60).raise_for_error()
        assert result.text == ""
        call = (result.choices[0].tool_calls or [])[0]
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
        names.add(call.name)
    return names


@pytest.fixture(scope="module")
def harmony_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a worker whose model answers in channels."""
    folder = tmp_path_factory.mktemp("harmony")
    template = folder / "template.jinja"
    template.write_text(CHANNELS)
    with (
        RedisServer() as server,
        WorkerProcess(server.url, SMALL["gpt-oss-mxfp4_moe"], folder, ORCD_CHAT_TEMPLATE=str(template)),
        Client(server.url) as client,
    ):
        yield client


def test_a_document_is_the_final_message_of_a_model_with_channels(harmony_client: Client) -> None:
    request = asked(PERSON, 0) | {"prompt": None, "messages": MESSAGES, "max_tokens": 180}
    analyses = []
    for seed in range(4):
        result = harmony_client.result(harmony_client.submit(**request | {"seed": seed}), timeout=60)
        check(result)
        assert result.schema_valid
        analyses.append(result.choices[0].reasoning)
    assert any(analyses)


@pytest.mark.parametrize("tool_choice", ["required", {"name": "weather"}])
def test_a_model_with_channels_calls_a_tool_that_must_be_called(harmony_client: Client, tool_choice: Any) -> None:
    names = forced_calls(harmony_client, tool_choice, max_tokens=150)
    assert tool_choice == "required" or names == {"weather"}
