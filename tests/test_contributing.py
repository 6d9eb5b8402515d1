"""Every file and function that CONTRIBUTING.md names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SOURCES = (".py", ".cu", ".cuh", ".lua")
RECIPES = {
    "A model family": 3,
    "A tensor type": 4,
    "An op": 4,
    "A sampling parameter": 6,
    "A metric": 2,
    "An error code": 3,
}
"""Most files of each; a page of the documentation among them, tests not."""


def quoted() -> list[str]:
    """What stands in backticks outside code blocks, in order."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE))


def is_path(text: str) -> bool:
    return " " not in text and ("/" in text or text.endswith((*SOURCES, ".md", ".toml")))


def is_name(text: str) -> bool:
    """Whether it is a class, a method or, written with (), a function or kernel."""
    return re.fullmatch(r"[A-Z]\w*[a-z]\w*(\.\w+)?|\w+\(\)", text) is not None


def names() -> Iterator[tuple[str, str]]:
    """Names of classes, methods and functions, each with the source file that was named last before it."""
    path = ""
    for text in quoted():
        if is_path(text):
            path = text if text.endswith(SOURCES) else path
        elif is_name(text):
            yield path, text.removesuffix("()")


@cache
def defined(path: str) -> set[str]:
    """Classes, functions and methods of a Python file, or all words of another."""
    source = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".py"):
        return set(re.findall(r"\w+", source))
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
    return found


def paths() -> Iterator[tuple[str, str]]:
    """Paths with the folder that was named last: they may be told from there."""
    folder = ""
    for text in quoted():
        if is_path(text):
            yield folder, text
            if text.endswith("/") and (ROOT / text).is_dir():
                folder = text


@pytest.mark.parametrize(("folder", "path"), sorted(set(paths())))
def test_a_file_that_is_named_exists(folder: str, path: str) -> None:
    pattern = path.replace("NAME", "*")
    assert list(ROOT.glob(pattern)) or list(ROOT.glob(folder + pattern))


@pytest.mark.parametrize(("path", "name"), sorted(set(names())))
def test_a_function_that_is_named_is_in_the_file_named_before_it(path: str, name: str) -> None:
    assert "NAME" in path or name in defined(path)


@pytest.mark.parametrize(("recipe", "most"), RECIPES.items())
def test_a_recipe_names_no_more_files_than_it_promises(recipe: str, most: int) -> None:
    [text] = re.findall(rf"^\*\*{recipe}\*\*.*?(?=^\*\*|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert len(re.findall(r"^\d\. ", text, re.MULTILINE)) <= most
    assert f"{most})" in text.splitlines()[0]
