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
    sequences: dict[Sequence, None] = field(default_factory=dict)
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)  # by their next blocks


class PrefixTree:
    """Sequences by their blocks; what changes when one comes or leaves depends on its own length alone.

    A level is a number of tokens that whole blocks hold and that whole units fill.
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
        node, path = self._root, []
        for level in range(sequence.num_computed // self._level_tokens):
            block_ids = tuple(sequence.block_ids[level * self._level_blocks : (level + 1) * self._level_blocks])
            child = node.children.get(block_ids)
            if child is None:
                child = node.children[block_ids] = _Node(node.num_tokens + self._level_tokens)
            child.sequences[sequence] = None
            path.append(child)
            node = child
        self._paths[sequence] = sequence.revision, path

    def _remove(self, sequence: Sequence) -> None:
        _, path = self._paths.pop(sequence)
        for node in path:
            del node.sequences[sequence]
        for parent, node in zip([self._root, *path], path, strict=False):
            if not node.sequences:
                # What is below it goes with it: its sequences are this one's alone.
                parent.children = {
                    block_ids: child for block_ids, child in parent.children.items() if child is not node
                }
                return
