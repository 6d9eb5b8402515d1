"""Grammars of requests, compiled for one vocabulary."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from orcd.errors import InvalidRequest
from worker.text.grammar.alphabet import Alphabet
from worker.text.grammar.closing import Closing, ClosingRule, required_names
from worker.text.grammar.document_growth import UNTOLD, Growth, framed, growth
from worker.text.grammar.grammar_text import Schemas, has_own_whitespace, schemas_of, suffixes_of
from worker.text.grammar.known_closing import KnownClosings
from worker.text.grammar.lexers import Lexers
from worker.text.grammar.matcher_batch import MatcherBatch
from worker.text.grammar.places.document_places import PROBES, DocumentPlaces
from worker.text.grammar.places.early_places import EarlyPlaces
from worker.text.grammar.places.place_memory import PlaceMemory
from worker.text.grammar.spelling import Spelling
from worker.text.grammar.token_matcher import TokenMatcher
from worker.text.tokenizer import Tokenizer

MAX_GRAMMAR_SIZE = 100_000
MAX_LEXER_STATES = 50_000
"""Of a compiled grammar, and of what answers make of it; a state takes 1 to 2 kB."""
LEXER_FUEL = 200_000
"""For the regular expressions of a grammar: about 0.1 s. Those that take more keep other grammars waiting."""
LEXERS_S = 0.1
"""Seconds for the lexers of a grammar, after which none is added: others wait to be compiled."""
EARLY_S = 0.1
"""The same for what is found out before anybody asks."""
SPARE_TOKENS = 16
"""By so many a closing that is found may be longer than the shortest one."""
_TEXT = r'[^"\\\x00-\x1F\x7F]'
SLICES = [rf"{_TEXT}{{1,{length}}}" for length in (2, 4, 7, 10, 16, 30)] + [rf"{_TEXT}+"]
"""Tokens that are texts of so many characters: where a string may have as many more, none of them is looked at."""


class GrammarCompiler:
    """Makes matchers of grammars (`worker.text.grammar.grammar_text`), for a model with ``vocab_size`` logits.

    What they need of the vocabulary takes up to seconds to make. For one thread at a time.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None, *, num_threads: int = 1) -> None:
        """``vocab_size`` None: as many as the tokenizer has. ``num_threads`` share the masks and tokens of a step.

        Raises `InvalidRequest` if the tokenizer has no end token.
        """
        vocab_size = vocab_size or tokenizer.vocab_size
        self._alphabet = Alphabet(tokenizer)
        tokens = _Tokens(tokenizer, vocab_size, self._alphabet.spelling)
        self._tokens = LLTokenizer(TokenizerWrapper(tokens), eos_token=tokens.end_ids, slices=SLICES)
        self._batch = MatcherBatch(vocab_size, num_threads)
        self._place_memory = PlaceMemory()

    def compile(self, grammar: str) -> TokenMatcher:
        """A matcher before the first token. Raises `InvalidRequest` for a grammar that cannot be one.

        Its documents are always closed in time, unless it is no JSON schema and no text was found that is short.
        """
        limits = LLParserLimits(
            initial_lexer_fuel=LEXER_FUEL,
            max_grammar_size=MAX_GRAMMAR_SIZE,
            max_lexer_states=MAX_LEXER_STATES,
            verbose_errors=False,
        )
        start = time.monotonic()
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidRequest(f"the grammar of the answer cannot be used: {_problem(matcher.get_error())}")
        beginnings = [matcher]
        while len(beginnings) < self._batch.num_threads and time.monotonic() - start < LEXERS_S:
            beginnings.append(LLMatcher(self._tokens, grammar, log_level=0, limits=limits))
        lexers = Lexers(beginnings)
        parts = schemas_of(grammar)
        required = required_names(parts.schemas if parts else [])
        closing = Closing(self._alphabet, required, suffixes_of(grammar))
        grows = _growth(parts)
        growths = [grows.of(each) for each in self._alphabet.structures]
        rule = ClosingRule(
            closing, KnownClosings(self._alphabet), self._alphabet, growths, grows.unfinished + SPARE_TOKENS
        )
        is_plain = parts is not None and not any(map(has_own_whitespace, parts.schemas))
        places = self._places(grammar) if grows.tells_by_place and is_plain else None
        found = TokenMatcher(lexers, self._batch, rule, places)
        if found.min_tokens() is not None:
            if places is not None and self._batch.num_threads > 1:  # else no step waits for the dearest of its masks
                end_s = time.monotonic() + EARLY_S
                EarlyPlaces(rule, self._batch.num_words, end_s).find(found, found.shortest)
            if places is not None:
                places.begin_use()
            return found
        if found.state.is_error():
            raise InvalidRequest(f"the grammar of the answer cannot be used: {_problem(found.state.get_error())}")
        if parts is not None and not parts.frame_bytes:
            raise InvalidRequest("the grammar of the answer cannot be used: no document was found that fits the schema")
        return TokenMatcher(lexers, self._batch)  # of another grammar there may be long documents only

    def _places(self, grammar: str) -> DocumentPlaces | None:
        """Those of a grammar whose schema has one of `PROBES` nowhere."""
        written = grammar.encode()
        probe_ids = [self._alphabet.of_byte(byte) for byte in PROBES if byte not in written]
        probe_id = next((each for each in probe_ids if each is not None), None)
        return None if probe_id is None else DocumentPlaces(self._place_memory, self._alphabet, probe_id)


def _growth(parts: Schemas | None) -> Growth:
    if parts is None:
        return UNTOLD
    growths = [growth(schema) for schema in parts.schemas]
    return framed(growths, parts.frame_bytes) if parts.frame_bytes else growths[0]


class _Tokens:
    """What llguidance asks of a tokenizer; the names are its own."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, spelling: Spelling) -> None:
        self._spelling = spelling
        self.end_ids = sorted(token_id for token_id in tokenizer.end_ids if token_id < vocab_size)
        if not self.end_ids:
            raise InvalidRequest("the grammar of the answer cannot be used: the model has no token that ends an answer")
        self.eos_token_id = self.end_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = [token_id for token_id in range(vocab_size) if tokenizer.is_special(token_id)]
        # A control token's text cannot be written with it: no grammar matches the first byte.
        self.tokens = [
            (b"\xff" if tokenizer.is_special(token_id) else b"") + tokenizer.token_bytes(token_id)
            for token_id in range(vocab_size)
        ]

    def __call__(self, text: bytes) -> Sequence[int]:
        """The ids of a text inside of an answer."""
        return self._spelling(text)


def _problem(error: str) -> str:
    """What llguidance says, in words that hold nothing of what the caller wrote but keywords of JSON schema."""
    if _UNSUPPORTED in error:
        named = sorted(set(re.findall(r"[$\w]+", error.partition(_UNSUPPORTED)[2])) & _KEYWORDS)
        return "the schema has keywords that are not supported" + (f" ({', '.join(named)})" if named else "")
    return next((problem for sign, problem in _PROBLEMS.items() if sign in error), "it is not well-formed")


_UNSUPPORTED = "Unimplemented keys"
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
"""Formats of texts that a schema may ask for."""
_PROBLEMS = {
    "Unsatisfiable schema": "no document can fit the schema",
    "Invalid type": "a type of the schema is unknown",
    "Unknown format": f"a format of the schema is not supported; known are {', '.join(FORMATS)}",
    "oneOf constraints": "oneOf is not supported; write anyOf",
    "not disjoint": "patterns of patternProperties that overlap are not supported",
    "Expected positive": "a keyword of the schema has a value of another type",
    "Resource": "the schema refers to another document",
    "Pointer": "the schema refers to a place that it does not have",
    "regex parse error": "a regular expression cannot be used",
    "look-around": "a regular expression looks around, which is not supported",
    "too large": "it is too large",
    "too complex": "it is too complex",
    "max is": "it is too complex",
    "too many": "it is too complex",
    "recursion limit": "it is nested too deeply",
    "limit": "it is too complex",
    "fuel": "it is too complex",
}
"""What is said, by a part of llguidance's text."""
_KEYWORDS = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "dependentRequired",
        "dependentSchemas",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
        "$dynamicAnchor",
        "contentEncoding",
        "minProperties",
        "maxProperties",
        "patternProperties",
        "multipleOf",
        "format",
        "oneOf",
        "allOf",
    ]
)
