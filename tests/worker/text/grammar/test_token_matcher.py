"""Whatever is drawn among what a grammar allows, the document is whole when the tokens are used up."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from orcd.errors import InvalidRequest, OrcdError
from tests.bench.structured_rates import SCHEMA
from tests.bench.structured_steps import synthetic_tokenizer
from tests.worker.text.grammar.compilers import BYTE_LEVEL, SENTENCE_PIECE, allowed_ids, compiler_of, tokenizer_of
from tests.worker.text.grammar.places.test_document_places import without_places
from tests.worker.text.grammar.schemas import make_schemas
from worker.text.grammar.closing import Closing
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.token_matcher import TokenMatcher

RECORD = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"items": {"type": "string"}}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def matcher_of(schema: Any, name: str = BYTE_LEVEL) -> TokenMatcher:
    return compiler_of(name).compile(grammar_text("json_schema", schema))


def drawn(matcher: TokenMatcher, chance: random.Random, num_left: int, name: str = BYTE_LEVEL) -> list[int]:
    """The ids of an answer, each drawn from those that may come next."""
    ids = []
    while num_left and not matcher.is_complete:
        allowed = allowed_ids(matcher, tokenizer_of(name).vocab_size, num_left)
        ids.append(matcher.take(chance.choice(allowed), num_left))
        num_left -= 1
    return ids


def text_of(ids: list[int], name: str = BYTE_LEVEL) -> str:
    return tokenizer_of(name).decode(ids, skip_special=True)


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
def test_a_document_is_whole_and_valid_however_few_tokens_it_has(name: str) -> None:
    num_refused = 0
    for number, schema in enumerate(make_schemas(7, 16)):
        try:
            beginning = matcher_of(schema, name)
        except InvalidRequest:
            num_refused += 1
            continue
        least = beginning.min_tokens()
        assert least is not None
        for spare in (0, 1, 9, 60):
            ids = drawn(beginning.copy(), random.Random(f"{number} {spare}"), least + spare, name)
            assert len(ids) <= least + spare
            jsonschema.validate(json.loads(text_of(ids, name)), schema)
    assert num_refused <= 1


def test_an_answer_that_another_process_goes_on_with_is_the_same_one() -> None:
    for number, schema in enumerate(make_schemas(11, 3)):
        beginning = matcher_of(schema)
        num_left = (beginning.min_tokens() or 0) + 25
        ids = drawn(beginning.copy(), random.Random(number), num_left)
        for cut in (*range(0, len(ids), 5), len(ids)):
            resumed = matcher_of(schema)
            resumed.restore(ids[:cut], num_left)
            whole = beginning.copy()
            whole.restore(ids[:cut], num_left)
            left = num_left - cut
            assert resumed.is_complete == whole.is_complete
            if left and not resumed.is_complete:
                size = tokenizer_of(BYTE_LEVEL).vocab_size
                assert allowed_ids(resumed, size, left) == allowed_ids(whole, size, left)
                assert ids[cut] in allowed_ids(resumed, size, left)


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
def test_a_token_is_forced_where_the_mask_allows_one_and_it_is_that_one(name: str) -> None:
    size = tokenizer_of(name).vocab_size
    num_forced = num_single = 0
    for number, schema in enumerate(make_schemas(17, 8)):
        beginning = matcher_of(schema, name)
        for spare in (2, 80):
            matcher, chance = beginning.copy(), random.Random(f"{number} {spare}")
            num_left = (beginning.min_tokens() or 0) + spare
            while num_left and not matcher.is_complete:
                asked_first = matcher.copy()
                forced, allowed = asked_first.forced_id(num_left), allowed_ids(matcher, size, num_left)
                assert allowed_ids(asked_first, size, num_left) == allowed
                assert forced is None or allowed == [forced]
                num_forced, num_single = num_forced + (forced is not None), num_single + (len(allowed) == 1)
                taken = asked_first.take(allowed[0] if forced is None else forced, num_left)
                if forced is None:
                    taken = matcher.take(chance.choice(allowed), num_left)
                else:
                    assert matcher.take(forced, num_left) == taken
                num_left -= 1
    assert num_single * 0.95 < num_forced <= num_single
    assert num_forced > 100


def test_a_copy_goes_its_own_way() -> None:
    first = matcher_of(RECORD)
    second = first.copy()
    (brace,) = allowed_ids(first, tokenizer_of(BYTE_LEVEL).vocab_size)
    first.take(brace, 100)
    assert allowed_ids(second, tokenizer_of(BYTE_LEVEL).vocab_size) == [brace]
    assert allowed_ids(first, tokenizer_of(BYTE_LEVEL).vocab_size) != [brace]


def test_the_text_of_a_control_token_is_written_with_others_and_the_token_itself_never_comes() -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    control = next(token_id for token_id in tokenizer.special_ids.values() if tokenizer.is_special(token_id))
    text = tokenizer.token_text(control)
    matcher = compiler_of(BYTE_LEVEL).compile(grammar_text("choice", [text]))
    ids = drawn(matcher, random.Random(1), 200)
    assert text_of(ids) == text
    assert control not in ids[:-1]


def test_white_space_between_the_parts_of_a_document_is_bounded() -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    (newline,) = tokenizer.encode("\n", add_special=False)
    matcher = matcher_of(RECORD)
    matcher.take(allowed_ids(matcher, tokenizer.vocab_size)[0], 1000)
    num_spaces = 0
    while newline in allowed_ids(matcher, tokenizer.vocab_size):
        matcher.take(newline, 1000)
        num_spaces += 1
    assert num_spaces == 8


def test_an_answer_may_end_where_the_grammar_says_so_and_only_there() -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    matcher = compiler_of(BYTE_LEVEL).compile(grammar_text("regex", "a+b?"))
    a, b = (tokenizer.encode(text, add_special=False)[0] for text in "ab")
    assert not set(allowed_ids(matcher, tokenizer.vocab_size)) & tokenizer.end_ids
    matcher.take(a, 10)
    assert set(allowed_ids(matcher, tokenizer.vocab_size)) & tokenizer.end_ids
    assert not matcher.is_complete
    matcher.take(b, 9)
    assert matcher.is_complete


def test_a_token_that_the_grammar_does_not_allow_is_an_error() -> None:
    matcher = matcher_of(RECORD)
    with pytest.raises(OrcdError, match="does not allow"):
        matcher.restore(tokenizer_of(BYTE_LEVEL).encode("no", add_special=False), 10)


def test_a_closing_is_looked_for_after_few_tokens_and_hardly_ever_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    beginning = matcher_of(SCHEMA)
    calls: Counter[str] = Counter()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return method(*arguments)

        return call

    for name in ("search", "renewed"):
        monkeypatch.setattr(Closing, name, counted(name, getattr(Closing, name)))
    num_tokens = sum(len(drawn(beginning.copy(), random.Random(seed), 256)) for seed in range(4))
    assert num_tokens > 500
    assert calls["renewed"] < num_tokens / 2
    assert calls["search"] < num_tokens / 100


def test_a_token_that_begins_too_much_is_replaced_where_no_closing_had_been_looked_for_too() -> None:
    long = {"type": "array", "items": {"type": "integer"}, "minItems": 50}
    matcher = matcher_of({"type": "array", "items": {"anyOf": [{"type": "null"}, long]}})
    bracket, end = (tokenizer_of(BYTE_LEVEL).encode(text, add_special=False)[0] for text in "[]")
    assert matcher.take(bracket, 71) == bracket
    assert matcher.copy().take(bracket, 170) == bracket
    assert matcher.take(bracket, 70) == end
    assert matcher.is_complete


@pytest.mark.parametrize("num_left", [19, 22, 25])
def test_where_closings_were_looked_for_what_may_come_next_follows_from_the_tokens_alone(num_left: int) -> None:
    properties = {
        "x0": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "number"}]},
        "~1": {"type": "integer"},
        "a2": {"type": ["string", "null"], "maxLength": 6},
        "a3": {"type": "string", "minLength": 3, "maxLength": 8},
        "x4": {"type": "string", "minLength": 1, "maxLength": 40},
    }
    others = {"type": "string", "maxLength": 4}
    schema = {"type": "object", "properties": properties, "required": ["x0", "a3"], "additionalProperties": others}
    tokenizer, taken = synthetic_tokenizer(), list[int]()
    beginning = GrammarCompiler(tokenizer).compile(grammar_text("json_schema", schema))
    matcher = beginning.copy()
    for text in (*'{"x0":5,"', "~", '2"', '"'):  # there is no room for the name that begins with the last three
        token_id = beginning._rule.alphabet.texts.index(text.encode())
        matcher.forced_id(num_left - len(taken))
        taken.append(matcher.take(token_id, num_left - len(taken)))
    assert tokenizer.decode(taken, skip_special=True) == '{"x0":5,"a3"'
    fresh = beginning.copy()
    fresh.restore(taken, 900)
    assert matcher.state.compute_bitmask() == fresh.state.compute_bitmask()


def test_where_another_answer_has_asked_llguidance_an_answer_goes_on_from_what_that_took() -> None:
    beginning, text = matcher_of(SCHEMA), b'[{"order_number":7,"customer":"x'
    answers = [beginning.copy() for _ in range(3)]
    for answer in answers:
        for number, byte in enumerate(text):
            answer.batch.masks([(answer, 400 - number)])
            answer.take(beginning._rule.alphabet.of_byte(byte), 400 - number)
        num_behind = len(answer._behind)
        assert answer.state.compute_bitmask() == answers[0].state.compute_bitmask()
    assert answers[1].place.state is not None, "there it had taken nothing of the text yet"
    assert num_behind == 0
    alone = without_places(beginning)
    for number, byte in enumerate(text):
        alone.take(beginning._rule.alphabet.of_byte(byte), 400 - number)
    assert answers[2].state.compute_bitmask() == alone.state.compute_bitmask()
