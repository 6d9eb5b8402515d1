"""Which blocks of the KV cache hold the tokens of which prefix."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence as Series


class PrefixCache:
    """Full blocks by chained hash: a block's hash covers its own tokens and, through its parent's, all before them.

    The hash is 128 bits of BLAKE2b, so that nobody can build a prompt that collides with another one's. The cache
    holds no references: a block stays known until the pool hands it out again (`forget`).
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._block_ids: dict[bytes, int] = {}
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
        """The blocks of the longest known prefix, in order."""
        block_ids = []
        for block_hash in hashes:
            block_id = self._block_ids.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def insert(self, block_hash: bytes, block_id: int) -> None:
        """Make a computed block known; where two hold the same prefix, the first one stays."""
        if block_hash not in self._block_ids and block_id not in self._hashes:
            self._block_ids[block_hash] = block_id
            self._hashes[block_id] = block_hash

    def forget(self, block_id: int) -> None:
        """The block is about to be overwritten."""
        block_hash = self._hashes.pop(block_id, None)
        if block_hash is not None:
            del self._block_ids[block_hash]

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def check_invariants(self) -> None:
        """The two maps are each other's inverse."""
        assert len(self._block_ids) == len(self._hashes)
        for block_hash, block_id in self._block_ids.items():
            assert self._hashes[block_id] == block_hash
