"""Which form of calls a chat template asks for, seen from lines of published ones."""

from __future__ import annotations

import json

import pytest

from tests.worker.text.vocabularies import KIT, needs_kit
from worker.text.tools.call_syntax import (
    FUNCTOOLS,
    GEMMA4,
    GLM,
    HERMES,
    LLAMA3,
    MISTRAL,
    PHI4,
    QWEN_CODER,
    CallSyntax,
    syntax_of,
)

LINES: list[tuple[str, CallSyntax | None]] = [
    (r"""{{- "within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arg""", HERMES),
    ("""{{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}""", HERMES),
    ("""{{- "<tool_call>\n" }}\n{{- '{"name": <function-name>, "arguments": <args-dict>}""", HERMES),
    ("""{{- '<tool_call>\\n<function=' + tool_call.name + '>\\n' }}""", QWEN_CODER),
    ("""format:\\n\\n<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>""", QWEN_CODER),
    ("""{{ '\\n<tool_call>' + tc.name }}""", None),
    ("""{{ '\\n<tool_call>' + tc.name }}{% for k, v in args %}<arg_key>{{ k }}</arg_key>""", GLM),
    ("""{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name""", LLAMA3),
    ("""{{- "[TOOL_CALLS][" }}""", MISTRAL),
    ("""{{- '[TOOL_CALLS]' + tool_call.function.name }}{{- '[ARGS]' + tool_call""", MISTRAL),
    ("""{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>'""", PHI4),
    ("""respond only with <|tool_call|> followed by a JSON list of tools used.""", PHI4),
    (
        """formatted as functools[{"name": [function name], "arguments": [function arguments as JSON]}, ...]""",
        FUNCTOOLS,
    ),
    ("""{{ '<|tool_call>call:' + name }}""", GEMMA4),
    ("""{{ '<|im_start|>' + message.role }}""", None),
]


@pytest.mark.parametrize(("line", "syntax"), LINES, ids=[line[:40] for line, _ in LINES])
def test_a_line_shows_the_form(line: str, syntax: CallSyntax | None) -> None:
    assert syntax_of(f"{{% if x %}}{line}{{% endif %}}") == syntax


@needs_kit
@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("chat_templates/qwen2.5", HERMES),
        ("chat_templates/qwq-32b", HERMES),
        ("chat_templates/phi-3.5", None),
        ("chat_templates/gpt-oss", None),
        ("2026/chat_templates/llama-3.2", LLAMA3),
        ("2026/chat_templates/mistral-small-3.2", MISTRAL),
        ("2026/chat_templates/granite-3.3", PHI4),
        ("2026/chat_templates/qwen3.5", QWEN_CODER),
        ("2026/chat_templates/glm-4.6", GLM),
        ("2026/chat_templates/gemma-4", GEMMA4),
        ("2026/chat_templates/smollm3", None),
    ],
)
def test_published_templates_are_told_apart(name: str, syntax: CallSyntax | None) -> None:
    assert syntax_of(json.loads((KIT / f"{name}.json").read_text())["template"]) == syntax


def test_markers_are_all_texts_that_may_be_control_tokens() -> None:
    assert HERMES.markers == ("<tool_call>", "</tool_call>")
    assert GLM.markers == (*HERMES.markers, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    assert GEMMA4.markers == ("<|tool_call>", "<tool_call|>", '<|"|>')
    assert MISTRAL.markers == ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
