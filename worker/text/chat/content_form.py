"""In which form a chat template takes messages, seen from its source."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from jinja2 import nodes


class ContentForm(msgspec.Struct, frozen=True):
    """``takes_parts``: the template has a loop over content. ``knows_developer``: it names that role.

    ``has_system_tools``: it takes tools only in a message (see `worker.text.chat.system_tools`).
    """

    takes_parts: bool
    knows_developer: bool
    has_system_tools: bool = False

    @classmethod
    def of(cls, template: nodes.Template) -> ContentForm:
        """By vLLM's rule: a loop over the content of a loop variable over messages, or over something named content."""
        messages = _names_of_messages(template)
        variables = {
            loop.target.name
            for loop in template.find_all(nodes.For)
            if isinstance(loop.target, nodes.Name) and _name(_subject(loop.iter)) in messages
        }
        constants = (each.value for each in template.find_all(nodes.Const))
        return cls(
            takes_parts=any(_is_content(_subject(loop.iter), variables) for loop in template.find_all(nodes.For)),
            knows_developer="developer" in constants,
            has_system_tools=_reads_field(template, "tools", variables)
            and all(name.name != "tools" for name in template.find_all(nodes.Name)),
        )


def _names_of_messages(template: nodes.Template) -> set[str]:
    """``messages``, and what is set to it or a part of it."""
    names = {"messages"}
    while more := {name for name, value in _assignments(template) if _name(_subject(value)) in names} - names:
        names |= more
    return names


def _assignments(template: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    for assignment in template.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name):
            yield assignment.target.name, assignment.node


def _subject(node: nodes.Node | None) -> nodes.Node | None:
    """What filters, tests and slices are applied to."""
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    return node


def _name(node: nodes.Node | None) -> str | None:
    return node.name if isinstance(node, nodes.Name) else None


def _reads_field(template: nodes.Template, name: str, variables: set[str]) -> bool:
    fields = (*template.find_all(nodes.Getitem), *template.find_all(nodes.Getattr))
    return any(_is_field(field, name, variables) for field in fields)


def _is_content(node: nodes.Node | None, variables: set[str]) -> bool:
    return _name(node) == "content" or _is_field(node, "content", variables)


def _is_field(node: nodes.Node | None, name: str, variables: set[str]) -> bool:
    """Whether a node is the field of one of the variables."""
    if isinstance(node, nodes.Getattr):
        return node.attr == name and _name(node.node) in variables
    if isinstance(node, nodes.Getitem):
        is_named = isinstance(node.arg, nodes.Const) and node.arg.value == name
        return is_named and _name(node.node) in variables
    return False
