"""Which running sequences begin with the same blocks, so that attention can read these once for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.engine.sequence import Sequence


class PrefixGroup(NamedTuple):
    """At least two sequences whose tables have the same blocks for their first ``num_tokens`` tokens."""

    sequences: tuple[Sequence, ...]
    num_tokens: int


@dataclass(slots=True, eq=False)
class _Node:
    """The sequences that hold the same blocks for the first ``num_tokens`` tokens."""

    num_tokens: int
    block_ids: tuple[int, ...] = ()  # the last of these blocks, by which its parent knows it
    sequences: dict[Sequence, None] = field(default_factory=dict)
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)


class PrefixTree:
    """Sequences by their blocks; what changes when one comes or leaves depends on what it shares with others alone.

    A level is a number of tokens that whole blocks hold and that whole units fill. Where a sequence is the only one it
    has no nodes on the levels below, until another one comes.
    """

    def __init__(self, block_tokens: int, unit_tokens: int) -> None:
        self._level_tokens = math.lcm(block_tokens, unit_tokens)
        self._level_blocks = self._level_tokens // block_tokens
        self._root = _Node(0)
        self._paths: dict[Sequence, tuple[int, list[_Node]]] = {}  # its revision, and its nodes from the first level on

    def update(self, sequences: Iterable[Sequence]) -> None:
        """Hold these sequences and no others, each as far as it is computed when it comes."""
        present = dict.fromkeys(sequences)
        for sequence, (revision, _) in tuple(self._paths.items()):
            if sequence not in present or sequence.revision != revision:
                self._remove(sequence)
        for sequence in present:
            if sequence not in self._paths:
                self._add(sequence)

    def groups(self) -> list[PrefixGroup]:
        """Groups with which fewest tokens are read; each sequence is in at most one."""
        nodes = [self._root]  # parents first
        for node in nodes:
            nodes += [child for child in node.children.values() if len(child.sequences) > 1]
        best: dict[_Node, tuple[int, list[_Node]]] = {}  # tokens that need not be read, with which groups
        for node in reversed(nodes):
            below = [best[child] for child in node.children.values() if child in best]
            saved = sum(each[0] for each in below)
            own = (len(node.sequences) - 1) * node.num_tokens
            best[node] = (own, [node]) if own > saved else (saved, [group for each in below for group in each[1]])
        return [PrefixGroup(tuple(node.sequences), node.num_tokens) for node in best[self._root][1]]

    def _add(self, sequence: Sequence) -> None:
        self._paths[sequence] = sequence.revision, []
        node = self._enter(sequence, self._root)
        while node is not None and len(node.sequences) > 1:
            other = next(iter(node.sequences))
            if self._paths[other][1][-1] is node:  # it was the only one
                self._enter(other, node)
            node = self._enter(sequence, node)

    def _enter(self, sequence: Sequence, parent: _Node) -> _Node | None:
        """The node of a sequence on the next level; None where nothing of that is computed."""
        end = parent.num_tokens + self._level_tokens
        if end > sequence.num_computed:
            return None
        first = parent.num_tokens // self._level_tokens * self._level_blocks
        block_ids = tuple(sequence.block_ids[first : first + self._level_blocks])
        child = parent.children.get(block_ids)
        if child is None:
            child = parent.children[block_ids] = _Node(end, block_ids)
        child.sequences[sequence] = None
        self._paths[sequence][1].append(child)
        return child

    def _remove(self, sequence: Sequence) -> None:
        _, path = self._paths.pop(sequence)
        for node in path:
            del node.sequences[sequence]
        for parent, node in zip([self._root, *path], path, strict=False):
            if not node.sequences:
                del parent.children[node.block_ids]  # with all below it, which was this one's alone
                return
