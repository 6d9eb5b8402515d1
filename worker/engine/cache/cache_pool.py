"""Who holds which entry of a cache: a block of the KV cache, or a state slot."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from itertools import chain


class CachePool:
    """Reference counts over a fixed number of entries.

    An entry without references keeps its contents until `allocate` hands it out again, which evicts them. Eviction is
    LRU: entries without useful contents go first; those that the prefix cache knows go last, least recently used
    (released) first.
    """

    def __init__(self, num_entries: int) -> None:
        self.num_entries = num_entries
        self._num_references = [0] * num_entries
        self._num_known = 0  # those from here on were never handed out: a dictionary of a million takes 0.1 s to make
        self._useless: OrderedDict[int, None] = OrderedDict()  # free, the next to be handed out first
        self._useful: OrderedDict[int, None] = OrderedDict()  # likewise; they come behind all others

    @property
    def num_free(self) -> int:
        """Entries that `allocate` can hand out."""
        return self.num_entries - self._num_known + len(self._useless) + len(self._useful)

    @property
    def num_used(self) -> int:
        """Entries that somebody holds."""
        return self.num_entries - self.num_free

    def is_free(self, entry: int) -> bool:
        """Whether nobody holds the entry."""
        return not self._num_references[entry]

    def allocate(self) -> int:
        """Take a free entry; the caller holds its first reference. Somebody must have looked at `num_free`."""
        return self.allocate_all(1)[0]

    def allocate_all(self, count: int) -> list[int]:
        """`allocate` so many: in one call, as a prompt takes many."""
        useless, useful, references = self._useless, self._useful, self._num_references
        entries = [useless.popitem(last=False)[0] for _ in range(min(count, len(useless)))]
        first = self._num_known
        self._num_known = min(first + count - len(entries), self.num_entries)
        entries += range(first, self._num_known)
        missing = count - len(entries)
        assert missing <= len(useful), "too few free entries: the scheduler promised more than there are"
        entries += [useful.popitem(last=False)[0] for _ in range(missing)]
        for entry in entries:
            references[entry] = 1
        return entries

    def retain(self, entry: int) -> None:
        """Take one more reference, or the first one to a free entry whose contents are still good."""
        self.retain_all((entry,))

    def retain_all(self, entries: Iterable[int]) -> None:
        """`retain` each: in one call, as a prefix has many."""
        references, useful = self._num_references, self._useful
        for entry in entries:
            if not references[entry]:
                if entry in useful:
                    del useful[entry]
                else:
                    self._take_useless(entry)
            references[entry] += 1

    def release(self, entry: int, *, useful: bool) -> None:
        """Give one reference back; ``useful``: the contents are worth keeping as long as other entries last."""
        assert self._num_references[entry] > 0, f"entry {entry} released more often than retained"
        self._num_references[entry] -= 1
        if not self._num_references[entry]:
            if useful:
                self._useful[entry] = None
            else:
                self._useless[entry] = None
                self._useless.move_to_end(entry, last=False)

    def num_references(self, entry: int) -> int:
        """How many hold the entry."""
        return self._num_references[entry]

    def check_invariants(self) -> None:
        """Every entry is either free or held, never both."""
        assert len(self._num_references) == self.num_entries
        assert self._useless.keys().isdisjoint(self._useful)
        for entry, num_references in enumerate(self._num_references):
            is_free = entry in self._useless or entry in self._useful or entry >= self._num_known
            assert num_references >= 0
            assert (num_references == 0) == is_free, f"entry {entry}: {num_references} references"

    def check_holders(self, holders: Iterable[Iterable[int]]) -> None:
        """Every entry's references are the ``holders`` that list it."""
        counts = dict(Counter(chain.from_iterable(holders)))
        references = {entry: number for entry, number in enumerate(self._num_references) if number}
        assert references == counts, f"references by entry: {references}, holders: {counts}"

    def _take_useless(self, entry: int) -> None:
        while self._num_known <= entry:
            self._useless[self._num_known] = None
            self._num_known += 1
        del self._useless[entry]
