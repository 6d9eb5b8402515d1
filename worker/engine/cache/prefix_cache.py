"""Which entries of a cache, blocks or state slots, belong to which prefix."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from collections.abc import Sequence as Series

ID_BYTES = 4
RUN_BLOCKS = 16
"""The hashes of so many blocks are kept together with their ids: to find them takes a tenth of the time."""
MOST_RUNS = 4096
"""Of which each takes 2 kB; then the oldest one goes."""


def pack_ids(token_ids: Series[int]) -> bytes:
    """Token ids as the device takes them, 32 bits each; raises `struct.error` for what is none.

    In half the time that arrays take for it.
    """
    return struct.Struct(f"{len(token_ids)}i").pack(*token_ids)  # `struct.pack` copies the arguments first


class PrefixCache:
    """Entries by the chained hash of a full block, which covers its own tokens and, through its parent's, all before.

    The hash is 128 bits of BLAKE2b, so that nobody can build a prompt that collides with another one's. The cache
    holds no references: an entry stays known until the pool hands it out again (`forget`).
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._entries: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}
        self._runs: dict[bytes, list[bytes]] = {}  # the hashes of runs of blocks, by the parent's and their ids

    def extend(self, hashes: list[bytes], root: bytes, token_ids: Series[int], packed_ids: bytes = b"") -> None:
        """Append to ``hashes`` what is missing, one per full block of ``token_ids``. Equal ``root``: shared blocks.

        ``packed_ids`` are the first of these as 32 bits each, for whoever has them already.
        """
        start, end = len(hashes) * self.block_tokens, len(token_ids) // self.block_tokens * self.block_tokens
        if start == end:
            return
        missing = packed_ids[ID_BYTES * start : ID_BYTES * end]
        num_packed = start + len(missing) // ID_BYTES
        if num_packed < end:
            missing += pack_ids(token_ids[num_packed:end])
        parent, run_bytes = hashes[-1] if hashes else root, RUN_BLOCKS * ID_BYTES * self.block_tokens
        for offset in range(0, len(missing), run_bytes):
            hashes += self._hash_run(parent, missing[offset : offset + run_bytes])
            parent = hashes[-1]

    def _hash_run(self, parent: bytes, packed_ids: bytes) -> list[bytes]:
        """The hashes of up to `RUN_BLOCKS` blocks that come after ``parent``'s; those of a full run are kept."""
        block_bytes, blake2b = ID_BYTES * self.block_tokens, hashlib.blake2b
        is_full = len(packed_ids) == RUN_BLOCKS * block_bytes
        run = parent + packed_ids if is_full else b""
        hashes = self._runs.get(run) if is_full else None
        if hashes is None:
            hashes = []
            for offset in range(0, len(packed_ids), block_bytes):
                parent = blake2b(parent + packed_ids[offset : offset + block_bytes], digest_size=16).digest()
                hashes.append(parent)
            if is_full:
                if len(self._runs) == MOST_RUNS:
                    del self._runs[next(iter(self._runs))]
                self._runs[run] = hashes
        return hashes

    def match(self, hashes: Series[bytes]) -> list[int]:
        """The entries of the longest prefix of which all blocks are known, in order."""
        entries = []
        for block_hash in hashes:
            entry = self._entries.get(block_hash)
            if entry is None:
                break
            entries.append(entry)
        return entries

    def knows_first(self, root: bytes, token_ids: Series[int], packed_ids: bytes = b"") -> bool:
        """Whether `match` would find the first block of ``token_ids``, which are as in `extend`: without the others."""
        block_bytes = ID_BYTES * self.block_tokens
        first = packed_ids[:block_bytes]
        if len(first) < block_bytes:
            first = pack_ids(token_ids[: self.block_tokens])
        return len(first) == block_bytes and self._hash_run(root, first)[0] in self._entries

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
        self.forget_all((entry,))

    def forget_all(self, entries: Iterable[int]) -> None:
        """`forget` each: in one call, as a prompt takes many."""
        hashes = self._hashes
        for entry in entries:
            if entry in hashes:
                del self._entries[hashes.pop(entry)]

    def __contains__(self, entry: int) -> bool:
        return entry in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def check_invariants(self) -> None:
        """The two maps are each other's inverse."""
        assert len(self._entries) == len(self._hashes)
        for block_hash, entry in self._entries.items():
            assert self._hashes[entry] == block_hash
