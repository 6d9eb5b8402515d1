"""Which entries of a cache, blocks or state slots, belong to which prefix."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence as Series


class PrefixCache:
    """Entries by the chained hash of a full block, which covers its own tokens and, through its parent's, all before.

    The hash is 128 bits of BLAKE2b, so that nobody can build a prompt that collides with another one's. The cache
    holds no references: an entry stays known until the pool hands it out again (`forget`).
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._entries: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}

    def extend(self, hashes: list[bytes], root: bytes, token_ids: Series[int]) -> None:
        """Append to ``hashes`` what is missing, one per full block of ``token_ids``. Equal ``root``: shared blocks."""
        start, end = len(hashes) * self.block_tokens, len(token_ids) // self.block_tokens * self.block_tokens
        if start == end:
            return
        missing = array("q", token_ids[start:end]).tobytes()
        block_bytes = len(missing) // (end - start) * self.block_tokens
        parent = hashes[-1] if hashes else root
        for offset in range(0, len(missing), block_bytes):
            parent = hashlib.blake2b(parent + missing[offset : offset + block_bytes], digest_size=16).digest()
            hashes.append(parent)

    def match(self, hashes: Series[bytes]) -> list[int]:
        """The entries of the longest prefix of which all blocks are known, in order."""
        entries = []
        for block_hash in hashes:
            entry = self._entries.get(block_hash)
            if entry is None:
                break
            entries.append(entry)
        return entries

    def find(self, block_hash: bytes) -> int | None:
        """The entry of one block, None if it is not known."""
        return self._entries.get(block_hash)

    def insert(self, block_hash: bytes, entry: int) -> None:
        """Make a computed entry known; where two belong to the same prefix, the first one stays."""
        if block_hash not in self._entries and entry not in self._hashes:
            self._entries[block_hash] = entry
            self._hashes[entry] = block_hash

    def forget(self, entry: int) -> None:
        """The entry is about to be overwritten."""
        block_hash = self._hashes.pop(entry, None)
        if block_hash is not None:
            del self._entries[block_hash]

    def __contains__(self, entry: int) -> bool:
        return entry in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def check_invariants(self) -> None:
        """The two maps are each other's inverse."""
        assert len(self._entries) == len(self._hashes)
        for block_hash, entry in self._entries.items():
            assert self._hashes[entry] == block_hash
