"""Calls a gateway by LiteLLM and prints what came of it as JSON; run as a process, as LiteLLM closes nothing.

python -m tests.orcd.gateway.litellm_calls URL MODEL
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

warnings.simplefilter("ignore")  # of pydantic about LiteLLM's own classes

import litellm  # noqa: E402

MESSAGES = [{"role": "user", "content": "count"}]


def main(url: str, model: str) -> None:
    to = {"api_base": url, "api_key": "none", "max_retries": 0, "timeout": 60}

    def chat(**fields: Any) -> Any:
        asked = {"model": f"openai/{model}", "messages": MESSAGES, "temperature": 0, "max_tokens": 3, **fields}
        return litellm.completion(**asked, **to)

    def complete(**fields: Any) -> Any:
        return litellm.text_completion(
            model=f"text-completion-openai/{model}", prompt="0", max_tokens=3, **fields, **to
        )

    usage = {"include_usage": True}
    calls: dict[str, Callable[[], Any]] = {
        "chat": chat,
        "chat, streamed": lambda: list(chat(stream=True, stream_options=usage)),
        "completion": complete,
        "completion, streamed": lambda: list(complete(stream=True)),
        "unknown model": lambda: chat(model="openai/other"),
        "wrong field": lambda: chat(top_p=5),
    }
    print(json.dumps({name: _told(call) for name, call in calls.items()}))


def _told(call: Callable[[], Any]) -> dict[str, Any]:
    """The text and the number of tokens of an answer, or the class and the text of an error."""
    try:
        answer = call()
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}
    chunks = answer if isinstance(answer, list) else [answer]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    texts = [
        choice.text
        if hasattr(choice, "text")
        else (choice.delta if isinstance(answer, list) else choice.message).content
        for choice in choices
    ]
    usage = getattr(chunks[-1], "usage", None)
    return {"text": "".join(text or "" for text in texts), "tokens": usage and usage.completion_tokens}


if __name__ == "__main__":
    main(*sys.argv[1:])
