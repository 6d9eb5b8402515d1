"""How one field of a body is treated, and reading a body's fields by a table of such treatments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orcd import request as requests
from orcd.errors import InvalidRequest
from orcd.request import Request
from orcd.sampling import unknown_field


@dataclass(frozen=True, slots=True)
class Read:
    """The field becomes the request's field ``to``; ``a.b`` is the key b of a.

    ``convert`` makes the request's value of the body's, and None of one that says nothing. It raises ValueError with
    what the value must be, to be read behind the field's name.
    """

    to: str
    convert: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """The field is read together with others by the endpoint itself, as ``how`` says."""

    how: str


@dataclass(frozen=True, slots=True)
class Unsupported:
    """The field is known and refused, unless its value is one of ``off``, which ask for nothing."""

    advice: str = ""
    off: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Ignored:
    """The field has no effect on the answer; ``why`` says what is it for."""

    why: str


Treatment = Read | Combined | Unsupported | Ignored


class BodyFields:
    """The fields of a body, sorted by the table of its endpoint. Explicit nulls mean absent.

    ``request`` are the fields that a request has too, under its names. ``combined`` are those that the endpoint reads
    itself, under the body's names; it puts what it makes of them into ``request`` with `put`.
    """

    def __init__(self, body: Any, table: Mapping[str, Treatment]) -> None:
        """Raises `InvalidRequest` for a field that is unknown or not supported, and for two that contradict."""
        if not isinstance(body, dict):
            raise InvalidRequest("body: must be an object of named fields")
        self.request: dict[str, Any] = {}
        self.combined: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        for name in body:
            if name not in table:
                raise unknown_field(name, table)
        for name in sorted(body, key=lambda name: _is_inner(table[name])):
            if body[name] is not None:
                self._read(name, body[name], table[name])

    def _read(self, name: str, value: Any, treatment: Treatment) -> None:
        match treatment:
            case Read(to=to, convert=convert):
                try:
                    converted = value if convert is None else convert(value)
                except ValueError as error:
                    raise InvalidRequest(f"{name}: {error}") from None
                if converted is not None:
                    self.put(to, converted, name)
            case Combined():
                self.combined[name] = value
            case Unsupported(advice=advice, off=off):
                if not is_one_of(value, off):
                    raise unsupported(name, advice)

    def put(self, to: str, value: Any, name: str) -> None:
        """Set the request's field ``to`` from the body's field ``name``. Raises `InvalidRequest` if they differ."""
        outer, _, key = to.rpartition(".")
        known = self.request.get(outer, {}) if outer else self.request
        if not isinstance(known, dict):
            raise InvalidRequest(f"{self._names[outer]}: must be an object")
        if key in known and known[key] != value:
            other = self._names.get(to, self._names.get(outer))
            raise InvalidRequest(f"{name}: {other} says another value; give one of the two")
        self._names[to] = name
        if outer:
            self._names.setdefault(outer, name)
            to, value = outer, {**known, key: value}
        self.request[to] = value

    def require(self, name: str) -> None:
        """Raises `InvalidRequest` if the body does not have the field ``name``."""
        if name not in self.combined and name not in self._names.values():
            raise InvalidRequest(f"{name}: must be given")

    def to_request(self, defaults: Mapping[str, Any]) -> Request:
        """The request, with ``defaults`` for those of its fields that the body does not give.

        Raises `InvalidRequest` with the name that the field has in the body.
        """
        try:
            return requests.parse(requests.with_defaults(self.request, defaults))
        except InvalidRequest as error:
            field = error.message.partition(":")[0].partition("[")[0]
            while field not in self._names and "." in field:
                field = field.rpartition(".")[0]
            name = self._names.get(field, field)
            raise InvalidRequest(name + error.message.removeprefix(field)) from None


def _is_inner(treatment: Treatment) -> bool:
    """Whether the field becomes a key of another, which has to be read before it."""
    return isinstance(treatment, Read) and "." in treatment.to


def is_one_of(value: Any, known: Iterable[Any]) -> bool:
    """Whether a value is one of those, as JSON has them: there true is not 1, and false not 0."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in known)


def unsupported(name: str, advice: str = "") -> InvalidRequest:
    """The error for a field that is known, but not what it asks for."""
    return InvalidRequest(f"{name} is not supported" + (f": {advice}" if advice else ""))
