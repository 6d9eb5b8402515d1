"""Log probabilities in the form in which an engine reports them, and the forms in which others want them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, repeat
from operator import eq
from typing import overload

import msgspec

from orcd.events import PackedLogprobs, TokenLogprob, unpacked_logprobs
from tasks.dispatch.engine.token_spellings import TokenSpellings

NO_ID = b"\xff" * 4
"""An id of -1 in a record. Other bytes may happen to be the same."""


class ReportedLogprobs(Sequence[TokenLogprob]):
    """Those of the tokens ``ids``, in records that `worker.contract.TokenOutput` describes.

    As there are very many, objects are made of them only where somebody looks at one.
    """

    def __init__(self, ids: Sequence[int], num_top: int, records: bytes, spellings: TokenSpellings) -> None:
        self._ids = ids
        self._num_top = num_top
        self._records = records
        self._spellings = spellings
        self._made: bytes | None = None  # by the process; empty if it was asked in vain

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> TokenLogprob: ...
    @overload
    def __getitem__(self, place: slice) -> list[TokenLogprob]: ...
    def __getitem__(self, place: int | slice) -> TokenLogprob | list[TokenLogprob]:
        return [*self][place]

    def __iter__(self) -> Iterator[TokenLogprob]:
        spelt = self._spellings.bytes_of(self._named_ids())
        return iter(unpacked_logprobs(self._ids, self._num_top, self._records, spelt))

    def packed(self) -> PackedLogprobs:
        """As the events of logs have them, without the ids."""
        return PackedLogprobs(self._num_top, self._records, self._spellings.texts.of(self._named_ids()))

    def json(self) -> msgspec.Raw:
        """What msgspec makes of a list of them, in half of the time, or by another process."""
        ids, spellings = self._ids, self._spellings
        made, self._made = self._made, None
        if made is None and spellings.process is not None:
            made = spellings.process.json(ids, self._num_top, self._records)
        if made:
            return msgspec.Raw(made)
        top_ids = self._top_ids()
        if not ids or not top_ids or NO_ID in self._records:
            return msgspec.Raw(msgspec.json.encode([*self]))
        # Ids are written anew: to fetch texts from all over the memory takes longer, so that is done once for each.
        own_ids, *likely_ids = self._columns(self._named_ids())
        own, *logprobs = self._columns(self._named_logprobs())
        columns: list[Iterable[bytes]] = [repeat(b'{"id":'), own_ids, repeat(b',"logprob":'), own, repeat(b',"top":{"')]
        for likely_id, logprob in zip(likely_ids, logprobs, strict=True):
            columns += [likely_id, repeat(b'":'), logprob, repeat(b',"')]
        columns[-1] = repeat(b'},"pieces":{')
        columns.append([piece[1:] for piece in spellings.pieces.of(ids)])
        for column in top_ids:
            pieces = spellings.pieces.of(column)
            for row in compress(range(len(ids)), map(eq, ids, column)):
                pieces[row] = b""  # it is there already
            columns.append(pieces)
        columns.append(repeat(b"}},"))
        joined = b"".join(map(b"".join, zip(*columns)))  # noqa: B905 - what repeats has no end
        return msgspec.Raw(b"[" + joined[:-1] + b"]")

    @staticmethod
    def make_json(reported: Sequence[ReportedLogprobs]) -> None:
        """Have what `json` will return made by another process, where there is one: of many in one call."""
        if reported and (process := reported[0]._spellings.process) is not None:
            made = process.json_of_all([(each._ids, each._num_top, each._records) for each in reported])
            for each, text in zip(reported, made, strict=True):
                each._made = text or b""

    def _columns(self, numbers: Sequence[float]) -> list[list[bytes]]:
        """Numbers in JSON: those of the tokens themselves, those of the likeliest at each place, of the second ..."""
        texts = msgspec.json.encode(numbers)[1:-1].split(b",")
        return [texts[start : start + len(self)] for start in range(0, len(texts), len(self))]

    def _named_logprobs(self) -> list[float]:
        """As `_named_ids`."""
        fields, num_fields = memoryview(self._records).cast("f"), 1 + 2 * self._num_top
        numbers: list[float] = [*fields[::num_fields]]
        for place in range(1 + self._num_top, num_fields):
            numbers += fields[place::num_fields].tolist()
        return numbers

    def _named_ids(self) -> list[int]:
        """Those of all tokens, then those of the likeliest at each place, of the second likeliest ..."""
        named = [*self._ids]
        for column in self._top_ids():
            named += column
        return named

    def _top_ids(self) -> list[list[int]]:
        """Columns: the likeliest of each token, the second likeliest ..."""
        fields = memoryview(self._records).cast("i")
        return [fields[place :: 1 + 2 * self._num_top].tolist() for place in range(1, 1 + self._num_top)]
