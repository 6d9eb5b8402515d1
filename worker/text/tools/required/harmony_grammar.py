"""Answers in GPT-OSS's channels that must have a form, as a grammar: see `worker.text.harmony`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orcd.errors import InvalidRequest
from worker.text.grammar.grammar_text import framed
from worker.text.harmony import Channels
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.required.call_grammar import arguments_of, control_text


def harmony_answer(
    answer: str, tokenizer: Tokenizer, prompt_ids: Sequence[int], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The grammar of an answer whose final message is of the grammar ``answer``; the model may think before.

    A call of one of the ``tools`` may stand in its place. Raises `InvalidRequest` if the prompt ends where no answer
    begins.
    """
    frame = _Frame(tokenizer, prompt_ids)
    if frame.channel == "final":  # the prompt has begun the message
        return answer
    messages = " | ".join([frame.message("final", "@answer"), *frame.calls(tools)])
    parts = {"answer": answer, **arguments_of([tool["function"] for tool in tools])}
    return framed(frame.behind_thought(f"({messages})", "response_format, structured_outputs"), parts)


def harmony_calls(tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> str:
    """The grammar of a call of one of the ``tools``; the model may think before.

    Raises `InvalidRequest` if the prompt ends where no call can begin.
    """
    frame = _Frame(tokenizer, prompt_ids)
    calls = " | ".join(frame.calls(tools))
    return framed(frame.behind_thought(f"({calls})", "tool_choice"), arguments_of([tool["function"] for tool in tools]))


class _Frame:
    """What stands around documents, in Lark's notation."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        channels = Channels.of(tokenizer, prompt_ids, AnswerForm())
        assert channels is not None, "a model without channels"
        self.channel = "" if channels.awaits_channel else channels.channel
        self._tokenizer = tokenizer

    def message(self, header: str, text: str, content_type: str = "") -> str:
        """A message from the token that begins with its channel on."""
        opened, begun = (control_text(self._tokenizer, each) for each in ("<|channel|>", "<|message|>"))
        return " ".join(filter(None, [opened, json.dumps(header, ensure_ascii=False), content_type, begun, text]))

    def calls(self, tools: Sequence[Mapping[str, Any]]) -> list[str]:
        """A message to each of the tools."""
        constrain = control_text(self._tokenizer, "<|constrain|>")
        return [
            self.message(
                f"commentary to=functions.{tool['function']['name']} ", f"@arguments{index}", f'{constrain} "json"'
            )
            for index, tool in enumerate(tools)
        ]

    def behind_thought(self, message: str, field: str) -> str:
        """A grammar of thoughts, if the model has any or the prompt has begun some, and then this message."""
        end, start = (control_text(self._tokenizer, each) for each in ("<|end|>", "<|start|>"))
        thought = [f'thought: TEXT {end} {start} "assistant"', r"TEXT: /(.|\n)*/"]
        if self.channel == "analysis":
            return "\n".join([f"start: thought {message}", *thought])
        if self.channel != "":
            raise InvalidRequest(f"{field}: the prompt must end where an answer begins, as with add_generation_prompt")
        opened = self.message("analysis", "thought")
        return "\n".join([f"start: ({opened})? {message}", *thought])
