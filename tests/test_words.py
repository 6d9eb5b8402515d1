"""No word that the project has given up stands anywhere: `tests.word_rules` lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests import word_rules
from tests.word_rules import RULES, Rule, WordPattern

ROOT = Path(__file__).parents[1]
FOLDERS = ("orcd", "tasks", "worker", "kernels", "tests", "docs")
SUFFIXES = {".acl", ".c", ".cfg", ".cu", ".cuh", ".lua", ".md", ".py", ".tla", ".toml", ".yaml"}
TOP_LEVEL = (
    ".ci/run", ".env.example", "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "Makefile", "README.md", "compose.yaml",
    "pyproject.toml",
)  # fmt: skip
RULE_FILES = (Path(__file__), Path(word_rules.__file__))


@cache
def texts() -> dict[str, str]:
    """The project's text by file, but for pytest's MonkeyPatch, which no rule means; line 0 is the file's own path."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    found = {}
    for path in [*files, *(ROOT / name for name in TOP_LEVEL)]:
        name = path.relative_to(ROOT).as_posix()
        if path not in RULE_FILES:
            found[name] = re.sub("MonkeyPatch|monkeypatch", "", f"{name}\n{path.read_text()}")
    return found


@cache
def identifiers() -> str:
    """Each word and identifier of the project's text once."""
    return " ".join({each for text in texts().values() for each in re.findall(r"\w+", text)})


def uses(rule: Rule) -> Iterator[str]:
    """Where the old word still stands."""
    pattern, where = re.compile(rule.pattern, re.MULTILINE), re.compile("|".join(rule.where))
    if isinstance(rule.pattern, WordPattern) and not pattern.search(identifiers()):
        return
    for name, text in texts().items():
        if where.search(name) and pattern.search(text):
            for number, line in enumerate(text.splitlines()):
                if pattern.search(line):
                    yield f"{name}:{number}: {line.strip()}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.old)
def test_an_old_word_stands_nowhere(rule: Rule) -> None:
    found = list(uses(rule))
    assert not found, f"{rule.old!r} is called {rule.new!r}:\n" + "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.old)
def test_a_rule_finds_the_private_use_and_lets_plain_english_pass(rule: Rule) -> None:
    for text in rule.caught:
        assert re.search(rule.pattern, text), text
    for text in rule.passed:
        assert not re.search(rule.pattern, text), text


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.old)
def test_each_place_that_a_rule_looks_at_exists(rule: Rule) -> None:
    for place in rule.where:
        assert any(re.search(place, name) for name in texts()), f"no file's path matches {place!r}"
