"""The sampling parameters: one table, from which the checks of requests and engines and the documentation are made.

A field of `SamplingFields` is a row of the table: a parameter's name, type, limits, default, where it acts and what it
means. `convert` checks fields against it, and `PARAMETERS` gives its rows as text. Two more classes have a line for
each parameter, because type checkers and editors do not see fields that are made at run time: `SamplingKeywords`, and
`EngineSampling` for those that the engine is told. Tests compare both with the table.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from orcd.errors import InvalidRequest

Where = Literal["request", "engine", "logits", "draw"]
"""Where a parameter acts: "request" before and after the engine, which is not told of it; "engine" on a sequence as a
whole; in the op that draws (`kernels.batch.SamplingRow`) "logits" on the logits and "draw" on the draw from them."""

MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 65536
"""Log probabilities of a prompt's tokens and of the alternatives to them, all together: a few MB of JSON."""

_INT32_END = 2**31

TokenId = Annotated[int, Meta(ge=0, lt=_INT32_END)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


def _row(where: Where, meaning: str, **limits: Any) -> Meta:
    """What the table says of a parameter besides its name, type and default; ``limits`` as msgspec has them."""
    return Meta(description=meaning, extra={"where": where}, **limits)


Kind = TypeVar("Kind")


def prepared(kind: Kind) -> Kind:
    """Have msgspec learn a type while its module is imported, which one thread does at a time; returns the type.

    Otherwise it does so when the type is first used, and a second thread that uses the type meanwhile ends the process
    (SIGSEGV; msgspec 0.22). A decoder of the type that a module has has the same effect.
    """
    msgspec.json.Decoder(kind)
    return kind


@prepared
class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The table of sampling parameters, as the part of a request that they are."""

    max_tokens: Annotated[int, _row("engine", "most tokens to draw; null: no limit", ge=1, lt=_INT32_END)] | None = None
    min_tokens: Annotated[int, _row("engine", "tokens before a stop token or string counts", ge=0, lt=_INT32_END)] = 0
    temperature: Annotated[float, _row("draw", "divides the logits; 0 takes the most probable token", ge=0, le=2)] = 1.0
    top_p: Annotated[float, _row("draw", "keeps the most probable tokens up to this mass; 1 is off", gt=0, le=1)] = 1.0
    top_k: Annotated[int, _row("draw", "keeps so many of the most probable tokens; 0 is off", ge=0, lt=_INT32_END)] = 0
    min_p: Annotated[float, _row("draw", "drops tokens below this share of the largest probability", ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, _row("logits", "divides the logits of tokens so far", ge=0.01, le=10)] = 1.0
    presence_penalty: Annotated[float, _row("logits", "subtracted from the logits of tokens so far", ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, _row("logits", "the same, times how often a token was", ge=-2, le=2)] = 0.0
    logit_bias: Annotated[dict[TokenId, Bias], _row("logits", "added to logits, by token id", max_length=4096)] = {}
    seed: Annotated[int, _row("engine", "of the random numbers; null: a random one", ge=0, le=2**63 - 1)] | None = None
    stop: Annotated[list[StopString], _row("request", "strings that end an answer", max_length=16)] = []
    stop_token_ids: Annotated[list[TokenId], _row("engine", "token ids that end an answer", max_length=256)] = []
    ignore_eos: Annotated[bool, _row("request", "goes on after the model's own end tokens")] = False
    include_stop_str_in_output: Annotated[bool, _row("request", "leaves the stop string in the answer")] = False
    skip_special_tokens: Annotated[bool, _row("request", "leaves control tokens out of the answer's text")] = True
    n: Annotated[int, _row("request", "number of answers", ge=1, le=16)] = 1
    logprobs: Annotated[int, _row("engine", "alternatives a token; null: none", ge=0, le=MAX_LOGPROBS)] | None = None
    bad_words: Annotated[list[BadWord], _row("engine", "texts whose tokens are never drawn", max_length=128)] = []
    prompt_logprobs: (
        Annotated[int, _row("engine", "alternatives to a prompt's tokens; null: none", ge=0, le=MAX_LOGPROBS)] | None
    ) = None


class SamplingKeywords(TypedDict, total=False):
    """`SamplingFields` as keyword arguments."""

    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | list[str] | tuple[str, ...]
    stop_token_ids: list[int] | tuple[int, ...]
    ignore_eos: bool
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    n: int
    logprobs: int | None
    bad_words: list[str] | tuple[str, ...]
    prompt_logprobs: int | None


class EngineSampling(msgspec.Struct, frozen=True):
    """The sampling parameters that an engine is told; their order is that of the wire, new ones come last."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    prompt_logprobs: int | None = None


ENGINE_LIMITS = frozenset({"seed", "stop_token_ids", "bad_words"})
"""Of these an engine has limits of its own: a seed may have all 64 bits there, the model's own end tokens are among the
ids, and words are ids."""

_EngineFields = prepared(
    msgspec.defstruct(
        "_EngineFields",
        [
            (name, hint)
            for name, hint in get_type_hints(SamplingFields, include_extras=True).items()
            if name in EngineSampling.__struct_fields__ and name not in ENGINE_LIMITS
        ],
    )
)

Fields = TypeVar("Fields", bound=SamplingFields)


def convert(fields: Any, kind: type[Fields]) -> Fields:
    """Check ``fields`` by name (plain values) against the types and limits of ``kind``.

    Raises `InvalidRequest` naming a field that is unknown, of another type, out of range or no finite number.
    """
    try:
        converted = msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _refusal(error, kind.__struct_fields__) from None
    _check_finite(converted)
    return converted


def check(sampling: EngineSampling) -> None:
    """Check what an engine is told against the same limits, but for `ENGINE_LIMITS`; raises as `convert` does."""
    try:
        converted = msgspec.convert(sampling, _EngineFields, from_attributes=True)
    except msgspec.ValidationError as error:
        raise _refusal(error, _EngineFields.__struct_fields__) from None
    _check_finite(converted)


def _check_finite(fields: Any) -> None:
    for name in _FLOATS:
        if not math.isfinite(getattr(fields, name)):  # NaN is within all limits
            raise InvalidRequest(f"{name}: must be a finite number")
    if fields.logit_bias and not all(map(math.isfinite, fields.logit_bias.values())):
        raise InvalidRequest("logit_bias: every bias must be a finite number")


def unknown_field(name: Any, known: Iterable[str]) -> InvalidRequest:
    """The error for a field that nobody knows, with the one of ``known`` that may be meant."""
    shown = str(name)[:80]
    similar = difflib.get_close_matches(shown, known, 1)
    return InvalidRequest(f"{shown}: unknown field" + (f"; did you mean {similar[0]}?" if similar else ""))


def _refusal(error: msgspec.ValidationError, known: Iterable[str]) -> InvalidRequest:
    """The message of msgspec with the field in front: it names types, bounds and fields, never a value."""
    problem, _, path = str(error).partition(" - at `")
    is_of_key = path.startswith("key` in `")
    field = path.removeprefix("key` in `").rstrip("`").removeprefix("$").removeprefix(".")
    if problem.startswith("Object contains unknown field `"):
        unknown = problem.partition("`")[2].rstrip("`")
        return unknown_field(f"{field}.{unknown}", ()) if field else unknown_field(unknown, known)
    problem = problem.partition(" '")[0]
    problem = problem[:1].lower() + problem[1:]
    return InvalidRequest(f"{field or 'request'}: {'a key: ' if is_of_key else ''}{problem}")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A row of the table, as documentation has it."""

    name: str
    values: str  # its type and limits
    default: str  # as JSON
    where: Where
    meaning: str


def _parameters() -> Iterator[Parameter]:
    hints = get_type_hints(SamplingFields, include_extras=True)
    for field in msgspec.structs.fields(SamplingFields):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            hint = get_args(hint)[0]  # of "... | None"
        [row] = hint.__metadata__
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        yield Parameter(
            field.name, _values(hint), msgspec.json.encode(default).decode(), row.extra["where"], row.description
        )


def _values(hint: Any) -> str:
    """A type and its limits in words."""
    kind, [limits] = hint.__origin__, hint.__metadata__
    if kind is bool:
        return "true or false"
    if kind is str:
        return f"text of {limits.min_length} to {limits.max_length} characters"
    if kind is int:
        return f"integer from {limits.ge} to {limits.le if limits.lt is None else limits.lt - 1}"
    if kind is float:
        least = limits.ge if limits.gt is None else f"{limits.gt} (excluded)"
        most = limits.le if limits.lt is None else f"{limits.lt} (excluded)"
        return f"number from {least} to {most}"
    return f"at most {limits.max_length}: {', each with a '.join(map(_values, get_args(kind)))}"


PARAMETERS = {parameter.name: parameter for parameter in _parameters()}
"""The table by the parameters' names."""

_FLOATS = [name for name, hint in get_type_hints(SamplingFields).items() if hint is float]
