"""Which tokens are more than text: found in a prompt by their spelling, never shown, or the end of an answer.

GGUF files mark them by type, though not always well, so what llama.cpp goes by is followed here too: some tokens are
known by their text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import groupby, takewhile
from operator import itemgetter

from orcd.errors import ModelLoadFailed
from worker.text.vocabulary import TokenType, Vocabulary

MAX_SPECIAL_TOKENS = 1 << 16
"""Real vocabularies have a few hundred; finding them takes time that grows with their number."""

_STRETCH = 1 << 16
"""Characters searched in one call, which holds the interpreter."""

_MAX_BRANCHINGS = 16
"""How deep expressions nest. Beyond, texts are tried one by one."""

_SPECIAL_TYPES = frozenset({TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED})

TURN_END_TEXTS = frozenset(
    (
        *("<|im_end|>", "<|endoftext|>", "<|end|>", "<|return|>", "<|call|>", "<|eot_id|>", "<|eom_id|>"),
        *("<|end_of_text|>", "<end_of_turn>", "<turn|>", "<|tool_response>", "<end_of_utterance>"),
        *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|END_OF_TURN_TOKEN|>"),
    )
)
"""Tokens that end an answer whatever their type: nobody writes these texts for anything else."""

END_TEXTS = TURN_END_TEXTS | frozenset(
    (
        *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|repo_name|>", "<reponame>", "<|file_sep|>"),
    )
)
"""Tokens that end an answer wherever they are special."""

_GLM_TURNS = frozenset(("<|user|>", "<|observation|>"))
"""Who speaks after the assistant in GLM: it begins the turn of the other, and that ends its own."""

_HARMONY_MESSAGE = frozenset(("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"))
_HARMONY_ENDS = frozenset(("<|return|>", "<|call|>"))


def harmony_texts(special_texts: Set[str]) -> frozenset[str]:
    """GPT-OSS's tokens between and within the messages of one answer, where the vocabulary is of that kind."""
    return _HARMONY_MESSAGE if special_texts >= _HARMONY_MESSAGE | _HARMONY_ENDS else frozenset()


def end_texts(special_texts: Set[str], texts: Set[str]) -> frozenset[str]:
    """Those of a vocabulary's ``texts`` that end an answer, of which ``special_texts`` are special.

    In GPT-OSS ``<|end|>`` ends one message of several. Gemma 4 has ``</s>`` for text.
    """
    ends = END_TEXTS & special_texts | TURN_END_TEXTS & texts
    if special_texts >= _GLM_TURNS:
        ends |= _GLM_TURNS
    if "<|tool_response>" in ends:
        ends -= {"</s>"}
    return ends - harmony_texts(special_texts)


_SPACES = re.compile(r"[ \t\n\v\f\r]*")


class SpecialTokens:
    """``control`` texts are special only where the caller parses special tokens, ``always`` texts everywhere.

    Whitespace that follows a text of ``strips_right`` belongs to it and is dropped. Tokens of ``hidden_ids`` have no
    text to show; those of ``end_ids``, a part of them, end an answer. ``control_texts`` are all that text of a message
    must not become: ``control``, and of ``always`` those that are hidden.
    """

    def __init__(
        self,
        control: Mapping[str, int],
        always: Mapping[str, int],
        *,
        strips_right: Set[str],
        hidden_ids: Set[int],
        end_ids: Set[int],
    ) -> None:
        self.ids: Mapping[str, int] = {**always, **control}
        self.hidden_ids = frozenset(hidden_ids)
        self.end_ids = frozenset(end_ids)
        self.control_texts = frozenset(control) | {text for text, token in always.items() if token in hidden_ids}
        self._strips_right = frozenset(strips_right)
        self._parsed = _any_of(self.ids.keys())
        self._always = _any_of(always.keys())
        self._never_control = _any_of(always.keys() - self.control_texts)
        self._longest = max(map(len, self.ids), default=0)

    def split(
        self, text: str, *, parse_special: bool, stand_ins: Mapping[int, str] | None = None
    ) -> Iterator[str | int]:
        """Cut ``text`` into plain stretches and the ids of special tokens; leftmost first, then longest.

        With ``stand_ins`` (see `worker.text.chat.content_escape`) no control token begins at one of these characters;
        what comes back has the characters that they stand for.
        """
        for part in self._split(text, self._parsed if parse_special else self._always):
            plain = part if isinstance(part, int) or not stand_ins else part.translate(stand_ins)
            if isinstance(plain, int) or plain == part:
                yield plain
            else:
                yield from self._split(plain, self._never_control)

    def _split(self, text: str, pattern: re.Pattern[str]) -> Iterator[str | int]:
        start = 0
        while match := self._search(pattern, text, start):
            if match.start() > start:
                yield text[start : match.start()]
            yield self.ids[match[0]]
            start = match.end()
            if match[0] in self._strips_right:
                start = _SPACES.match(text, start).end()  # type: ignore[union-attr]
        if start < len(text):
            yield text[start:]

    def _search(self, pattern: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
        """The first match from ``start`` on; each stretch is seen with as much of the next as a match can need."""
        for begin in range(start, len(text), _STRETCH):
            match = pattern.search(text, begin, begin + _STRETCH + self._longest)
            if match and match.start() < begin + _STRETCH:
                return match
        return None


def _any_of(texts: Set[str]) -> re.Pattern[str]:
    return re.compile(_expression(sorted(filter(None, texts)), _MAX_BRANCHINGS) or r"(?!)")


def _expression(texts: Sequence[str], branchings: int) -> str:
    """Matches the longest of ``texts``, sorted and not empty; a beginning that several share is tried once."""
    if not branchings:
        return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    choices = []
    for _, group in groupby(texts, key=itemgetter(0)):
        alike = list(group)
        pairs = zip(alike[0], alike[-1], strict=False)  # sorted, so what these two share all share
        start = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        ends = [text[len(start) :] for text in alike if text != start]
        end = f"(?:{_expression(ends, branchings - 1)})" if ends else ""
        choices.append(re.escape(start) + end + ("?" if ends and start in alike else ""))
    return "|".join(choices)


def from_vocabulary(vocabulary: Vocabulary) -> SpecialTokens:
    """Sort a GGUF's tokens by type, with the corrections that llama.cpp makes by text and by model name.

    An ordinary token that is spelt like an end token is found in prompts, as llama.cpp does. One that is spelt like no
    end of a turn stays text in answers, unlike there: Qwen's ``</s>`` is HTML.
    """
    ids, tokens, types = vocabulary.ids, vocabulary.tokens, vocabulary.types
    special = [token_id for token_id, kind in enumerate(types) if kind in _SPECIAL_TYPES]
    typed = {tokens[token_id]: (token_id, types[token_id]) for token_id in special if ids[tokens[token_id]] == token_id}
    typed |= {text: (ids[text], TokenType.CONTROL) for text in (TURN_END_TEXTS & ids.keys()) - typed.keys()}
    if len(typed) > MAX_SPECIAL_TOKENS:
        raise ModelLoadFailed(
            f"tokenizer.ggml.token_type has {len(typed)} special tokens; at most {MAX_SPECIAL_TOKENS}"
        )
    ends = end_texts(typed.keys(), ids.keys())
    harmony = harmony_texts(typed.keys())
    control, always = {}, {}
    for text, (token_id, kind) in typed.items():
        if text in ends or (kind != TokenType.USER_DEFINED and text not in harmony):
            control[text] = token_id
        else:
            always[text] = token_id
    spelt_like_ends = {text: ids[text] for text in (END_TEXTS & ids.keys()) - typed.keys()}
    named = {token_id for token_id in (vocabulary.eos_id, vocabulary.eot_id, vocabulary.eom_id) if token_id is not None}
    hidden = control.keys() | harmony
    return SpecialTokens(
        control | spelt_like_ends,
        always,
        strips_right=typed.keys() - {"<unk>", "<s>", "<|endoftext|>"} if vocabulary.is_phi3 else frozenset(),
        # A text may have several ids, of which a prompt gets the lowest and an answer may have any.
        hidden_ids=named | vocabulary.all_ids(hidden),
        end_ids=named | vocabulary.all_ids(ends),
    )
