"""In which form templates take content, seen from their source."""

from __future__ import annotations

import pytest

from worker.text.chat.content_form import ContentForm
from worker.text.chat_template import ChatTemplate


def form(source: str) -> ContentForm:
    return ChatTemplate(source).form


@pytest.mark.parametrize(
    "loop",
    [
        "{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for c in m['content'] %}{% endfor %}{% endfor %}",
        "{% for m in messages[1:] | list %}{% for c in m.content | reverse %}{% endfor %}{% endfor %}",
        "{% set rest = messages[1:] %}{% set all = rest %}{% for m in all %}{% for c in m.content[:1] %}"
        "{% endfor %}{% endfor %}",
        "{% macro write(content) %}{% for c in content %}{% endfor %}{% endmacro %}",
    ],
)
def test_a_loop_over_content_takes_parts(loop: str) -> None:
    assert form(loop).takes_parts


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}",
        "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls %}{% endfor %}{% endfor %}",
        "{% for m in others %}{% for c in m.content %}{% endfor %}{% endfor %}",
        "{% for i, m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for c in m.contents %}{% endfor %}{% endfor %}",
    ],
)
def test_any_other_template_takes_text(source: str) -> None:
    assert not form(source).takes_parts


def test_whether_a_template_names_the_developer_is_seen() -> None:
    assert form("{% if messages[0].role == 'developer' %}{% endif %}").knows_developer
    assert not form("a developer {{ developer }}").knows_developer


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("{% for m in messages %}{% if 'tools' in m %}{{ m['tools'] }}{% endif %}{% endfor %}", True),
        ("{% for m in messages %}{{ m.tools }}{% endfor %}", True),
        ("{{ tools }}{% for m in messages %}{{ m.tools }}{% endfor %}", False),
        ("{% for m in others %}{{ m.tools }}{% endfor %}", False),
        ("{{ tools }}", False),
    ],
)
def test_whether_tools_go_into_a_message_alone_is_seen(source: str, has: bool) -> None:
    assert form(source).has_system_tools is has
