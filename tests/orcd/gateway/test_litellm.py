from __future__ import annotations

import os
from typing import Any

import pytest

from tests.orcd.answering_worker import AnsweringWorker, FailingWorker

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import fetches a table of prices
litellm = pytest.importorskip("litellm", reason="takes 230 MB and is the extra orcd[litellm]")

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning")  # of its own classes

COUNT: dict[str, Any] = {"messages": [{"role": "user", "content": "count"}]}


def complete(url: str, model: str = "demo", **fields: Any) -> Any:
    """A chat by LiteLLM, which tries nothing twice."""
    asked = {"api_base": url, "api_key": "none", "max_retries": 0, "timeout": 10, **COUNT, **fields}
    return litellm.completion(model=f"openai/{model}", **asked)


def test_a_chat_is_answered_with_its_usage(url: str, worker: AnsweringWorker) -> None:
    answer = complete(url, temperature=0.5, seed=1, stop=["x"], max_tokens=3)
    assert answer.choices[0].message.content == " 1 2 3"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_a_chat_streams_and_its_usage_comes_last(url: str, worker: AnsweringWorker) -> None:
    chunks = list(complete(url, stream=True, stream_options={"include_usage": True}))
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == " 1 2 3"
    assert chunks[-1].usage.completion_tokens == 3


@pytest.mark.parametrize("streams", [False, True])
def test_completions_are_answered(url: str, worker: AnsweringWorker, streams: bool) -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/demo", prompt="0", api_base=url, api_key="none", max_retries=0, stream=streams
    )
    chunks = list(answer) if streams else [answer]
    assert "".join(choice.text or "" for chunk in chunks for choice in chunk.choices) == " 1 2 3"


def test_errors_are_those_of_their_status(url: str, failing_worker: FailingWorker) -> None:
    with pytest.raises(litellm.NotFoundError, match="no worker serves it"):
        complete(url, model="other")
    with pytest.raises(litellm.BadRequestError, match="top_p"):
        complete(url, top_p=5)
    with pytest.raises(litellm.ServiceUnavailableError, match="does not fit"):
        complete(url)
