from __future__ import annotations

import random

import numpy as np
import pytest

from tests.bench.structured_rates import SCHEMA
from tests.worker.text.grammar.compilers import BYTE_LEVEL, SENTENCE_PIECE, compiler_of, tokenizer_of
from tests.worker.text.grammar.schemas import make_schemas
from worker.text.grammar.grammar_text import grammar_text
from worker.text.grammar.spelling import MAX_KNOWN_BYTES, Spelling


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
@pytest.mark.parametrize("text", ['{"a":', " x", "日本", "ab" * MAX_KNOWN_BYTES])
def test_ids_are_those_of_the_text_and_of_nothing_in_front_of_it(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = Spelling(tokenizer)(text.encode())
    assert b"".join(tokenizer.token_bytes(token_id) for token_id in ids) == text.encode()


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
def test_what_must_come_depends_on_the_last_token_by_how_it_is_spelled_behind_that_alone(name: str) -> None:
    """Else places could not tell others: this is what llguidance does, and may do no more with another version."""
    compiler, num_shared = compiler_of(name), 0
    alphabet = compiler._alphabet
    for number, schema in enumerate([SCHEMA, *make_schemas(31, 12)]):
        beginning = compiler.compile(grammar_text("json_schema", schema))
        if beginning.place is None:
            continue
        chance, said = random.Random(number), dict[tuple, set]()
        for _ in range(12):
            matcher, num_left = beginning.copy(), 200
            while num_left and not matcher.is_complete:
                place, state = matcher.place, matcher.state.deep_copy()
                if num_left < 200 and (must := state.compute_ff_bytes()):
                    last_id = matcher._last_id
                    spelled = alphabet.spelling.behind(last_id, alphabet.texts[last_id], must)
                    key = place.outline, place.text, place.num_dropped, spelled
                    said.setdefault(key, set()).add((tuple(state.compute_ff_tokens()), last_id))
                mask = np.frombuffer(state.compute_bitmask(), np.uint8)
                (ids,) = np.nonzero(np.unpackbits(mask, bitorder="little"))
                spaces = [each for each in ids.tolist() if alphabet.texts[each].isspace()]
                matcher.take(chance.choice(spaces if spaces and chance.random() < 0.4 else ids.tolist()), num_left)
                num_left -= 1
        for each in said.values():
            assert len({token_ids for token_ids, _ in each}) == 1
            num_shared += len(each) - 1
    assert num_shared > 20
