"""What a chat template fails at is found among the messages, and named."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import InvalidRequest
from worker.text.chat.template_fault import Messages, locate
from worker.text.chat_template import ChatTemplate

USER: dict[str, Any] = {"role": "user", "content": "CANARY"}


def refusal(source: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(source).render(messages, **arguments)
    assert "CANARY" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("place", [0, 1, 4, 9])
def test_the_message_and_its_field_are_named(place: int) -> None:
    messages = [dict(USER) for _ in range(10)]
    messages[place] = {"role": "assistant", "content": "x", "name": "n", "tool_calls": 5}
    source = "{% for m in messages %}{{ m.content + '' }}{% for c in m.tool_calls or [] %}{% endfor %}{% endfor %}"
    said = f"messages[{place}].tool_calls: the model's chat template cannot use it (TypeError)"
    assert refusal(source, messages) == said
    messages[place] = {"role": "assistant", "content": None}
    assert refusal(source, messages).startswith(f"messages[{place}].content: ")


def test_a_message_whose_fields_fail_only_together_is_named_alone() -> None:
    source = "{% for m in messages %}{% if m.a and m.b %}{{ m.a + m.b }}{% endif %}{% endfor %}"
    messages = [USER, {**USER, "a": "CANARY", "b": 1, "c": 2}]
    assert refusal(source, messages).startswith("messages[1].a: ")
    source = "{% for m in messages %}{% if m.role == 'odd' %}{{ none + 1 }}{% endif %}{% endfor %}"
    assert refusal(source, [USER, {**USER, "role": "odd"}]).startswith("messages[1]: ")


def test_a_template_that_fails_at_anything_says_so() -> None:
    assert refusal("{{ missing.field.other }}", [USER]) == (
        "messages: the model's chat template fails whatever they are (UndefinedError)"
    )


def test_a_template_that_cannot_do_without_tools_says_so() -> None:
    source = "{% for t in tools %}{{ t }}{% endfor %}"
    assert refusal(source, [USER]) == "tools: the model's chat template needs them (TypeError)"


def test_what_the_template_itself_refuses_is_told_in_its_words() -> None:
    assert refusal("{{ raise_exception('no') }}", [USER]) == "messages: the model's chat template refuses them: no"


def test_few_messages_are_looked_at_however_many_there_are() -> None:
    asked = 0

    def fails(messages: Messages) -> bool:
        nonlocal asked
        asked += 1
        return any("bad" in message for message in messages)

    messages = [dict(USER) for _ in range(10_000)]
    messages[7_777]["bad"] = 1
    assert locate(fails, messages) == "messages[7777].bad"
    assert asked < 20
    assert locate(fails, []) is None
