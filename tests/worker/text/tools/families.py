"""An answer with calls as each family writes it, and what it is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.worker.text.vocabularies import bpe_metadata, tokenizer_of
from worker.text import tokenizer
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parts import CallDelta
from worker.text.tools.call_syntax import FUNCTOOLS, GEMMA4, GLM, HERMES, LLAMA3, MISTRAL, PHI4, QWEN_CODER, CallSyntax
from worker.text.tools.reasoning import ReasoningTags

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "array"}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("weather", "add_2")]
FIRST: dict[str, Any] = {"city": 'Zürich "☔" 😀\\', "days": [1, {"}": "</tool_call>]"}]}
SECOND: dict[str, Any] = {}
THINK = ReasoningTags("<think>", "</think>")
CHANNEL = ReasoningTags("<|channel>thought", "<channel|>", label="thought")


@dataclass(frozen=True)
class Answer:
    """``text`` of an answer of one family, in the tokens of one vocabulary."""

    text: str
    syntax: CallSyntax | None
    tokenizer: Tokenizer
    shown: str = ""
    analysis: str = ""
    reasoning: ReasoningTags | None = None
    prompt: str = ""
    ends_with_call: bool = False

    @property
    def ids(self) -> list[int]:
        """The answer in tokens."""
        return self.tokenizer.encode(self.text, add_special=False, parse_special=True)

    @property
    def prompt_ids(self) -> list[int]:
        """The end of the prompt in tokens."""
        return self.tokenizer.encode(self.prompt, add_special=False, parse_special=True)

    @property
    def form(self) -> AnswerForm:
        """The form that the answer has."""
        return AnswerForm(self.syntax, self.reasoning).with_tools(TOOLS, ends_with_call=self.ends_with_call)


CALLS = (CallDelta(0, "weather", json.dumps(FIRST, ensure_ascii=False)), CallDelta(1, "add_2", json.dumps(SECOND)))
_FIRST, _SECOND = (call.arguments for call in CALLS)
_BYTES = tokenizer.from_metadata(bpe_metadata("< t", "t o", "c a", "a l", '{ "', "n a"))


def _with_control(*markers: str) -> Tokenizer:
    return tokenizer.from_metadata(bpe_metadata('{ "', "n a", control=("<|im_end|>", *markers)))


def _object(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


_LIST = f"[{_object('weather', _FIRST)}, {_object('add_2', _SECOND)}]"
_HERMES = "\n".join(
    f"<tool_call>\n{_object(name, text)}\n</tool_call>" for name, text in (("weather", _FIRST), ("add_2", _SECOND))
)
_SWAPPED = (
    f'<tool_call>{{"arguments": {_FIRST}, "name": "weather"}}</tool_call><tool_call>{{"name": "add_2"}}</tool_call>'
)
_TAGS = (
    f"<tool_call>\n<function=weather>\n<parameter=city>\n{FIRST['city']}\n</parameter>\n<parameter=days>\n"
    f"{json.dumps(FIRST['days'])}\n</parameter>\n</function>\n</tool_call>\n"
    "<tool_call>\n<function=add_2>\n</function>\n</tool_call>"
)
_GLM = (
    f"<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{FIRST['city']}</arg_value>\n<arg_key>days</arg_key>\n"
    f"<arg_value>{json.dumps(FIRST['days'])}</arg_value>\n</tool_call>\n<tool_call>add_2\n</tool_call>"
)
_GEMMA = (
    f'<|tool_call>call:weather{{city:<|"|>{FIRST["city"]}<|"|>,days:[1,{{<|"|>}}<|"|>:<|"|></tool_call>]<|"|>}}]}}'
    "<tool_call|><|tool_call>call:add_2{}<tool_call|>"
)
_GEMMA_TOKENS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<turn|>", "<|turn>")
_LLAMA = f"{_object('weather', _FIRST, 'parameters')}; {_object('add_2', _SECOND, 'parameters')}"
_IDS = f'[{_object("weather", _FIRST)[:-1]}, "id": "a1B2c3D4e"}}, {_object("add_2", _SECOND)[:-1]}, "id": "f"}}]'
_NAMED = f"[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]{_FIRST}[TOOL_CALLS]add_2[ARGS]{_SECOND}"
_HARMONY = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
    f"<|constrain|>json<|message|>{_FIRST}<|end|><|start|>assistant to=functions.add_2<|channel|>commentary json"
    f"<|message|>{_SECOND}<|call|>"
)

ANSWERS = {
    "hermes": Answer(f"Let me see.\n\n{_HERMES}\n", HERMES, _BYTES, "Let me see."),
    "hermes, text behind": Answer(f"{_HERMES}\n\nThat is all.", HERMES, _BYTES, "\n\nThat is all."),
    "hermes, control tokens": Answer(_HERMES, HERMES, _with_control("<tool_call>", "</tool_call>")),
    "hermes, arguments first": Answer(_SWAPPED, HERMES, _BYTES),
    "qwen3": Answer(
        f"<think>\nRain? A < b.\n</think>\n\nSo:\n{_HERMES}",
        HERMES,
        tokenizer_of("qwen3-q4_1"),
        "So:",
        "Rain? A < b.",
        reasoning=THINK,
    ),
    "reasoning opened by the prompt": Answer(
        f"Rain?\n</think>\n\n{_HERMES}",
        HERMES,
        tokenizer_of("qwen3-q4_1"),
        analysis="Rain?",
        reasoning=THINK,
        prompt="<|im_start|>assistant\n<think>\n",
    ),
    "qwen 3 coder": Answer(f"Let me see.\n\n{_TAGS}", QWEN_CODER, _BYTES, "Let me see."),
    "qwen 3 coder, control tokens": Answer(_TAGS, QWEN_CODER, _with_control("<tool_call>", "</tool_call>")),
    "glm": Answer(
        f"<think>Rain?</think>\nLet me see.\n{_GLM}",
        GLM,
        _BYTES,
        "Let me see.",
        analysis="Rain?",
        reasoning=THINK,
    ),
    "glm, control tokens": Answer(_GLM, GLM, _with_control(*GLM.markers)),
    "glm, no lines between tags": Answer(_GLM.replace("\n", ""), GLM, _BYTES),
    "gemma 4": Answer(
        f"<|channel>thought\nRain?<channel|>{_GEMMA}",
        GEMMA4,
        _with_control(*_GEMMA_TOKENS),
        analysis="Rain?",
        reasoning=CHANNEL,
        prompt="<|turn>model\n",
    ),
    "gemma 4, reasoning that the prompt has closed": Answer(
        f"Well {_GEMMA}",
        GEMMA4,
        _with_control(*_GEMMA_TOKENS),
        "Well",
        reasoning=CHANNEL,
        prompt="<|turn>model\n<|channel>thought\n<channel|>",
    ),
    "gemma 4, spelt": Answer(_GEMMA, GEMMA4, _BYTES),
    "llama 3": Answer(_LLAMA, LLAMA3, tokenizer_of("llama3-bf16")),
    "llama 3, python tag": Answer(f"Well <|python_tag|>{_LLAMA}", LLAMA3, _with_control("<|python_tag|>"), "Well"),
    "mistral": Answer(f"[TOOL_CALLS]{_IDS}", MISTRAL, _with_control("[TOOL_CALLS]")),
    "mistral, names": Answer(
        f"Well, [1]{_NAMED}", MISTRAL, _with_control("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), "Well, [1]"
    ),
    "mistral, spelt": Answer(f"Well {_NAMED}", MISTRAL, tokenizer_of("llama2-q4_0"), "Well"),
    "phi 4": Answer(
        f"Well <|tool_call|>{_LIST}<|/tool_call|>", PHI4, _with_control("<|tool_call|>", "<|/tool_call|>"), "Well"
    ),
    "phi 4, spelt": Answer(f"<|tool_call|>{_LIST}<|/tool_call|>", PHI4, tokenizer_of("phi4-mini-f16")),
    "functools": Answer(f"func: functools{_LIST}", FUNCTOOLS, _BYTES, "func:"),
    "harmony": Answer(_HARMONY, None, tokenizer_of("gpt-oss-mxfp4_moe"), analysis="Hm.", prompt="<|start|>assistant"),
}
