"""Text to token ids and back, the same for a GGUF's own vocabulary and for a tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from orcd.errors import InvalidRequest, ModelLoadFailed
from worker.text import special_tokens, vocabulary
from worker.text.encoders.gguf_encoder import GgufEncoder
from worker.text.encoders.json_encoder import JsonEncoder

_STEP = 1 << 20
"""Characters that are looked at in one call, which holds the interpreter."""


class Encoder(Protocol):
    """The half of a tokenizer that depends on where the vocabulary came from."""

    @property
    def control_texts(self) -> Set[str]:
        """The spellings of the tokens that text of a message must not become."""

    @property
    def digest(self) -> bytes:
        """Tells it from any that may make other ids of a text: a hash of all that its file says of that."""

    def encode(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        max_tokens: int | None,
        stand_ins: Mapping[int, str] | None = None,
    ) -> list[int]:
        """``text`` is valid Unicode. Raises `ContextLengthExceeded`, and holds the interpreter for moments only."""


class Tokenizer:
    """One model's vocabulary. Immutable, and safe to use from several threads.

    ``special_ids`` maps the text of every special token to its id. ``end_ids`` end an answer. ``hidden_ids`` are the
    special tokens without text of their own (control tokens); user-defined ones do have text.
    ``strips_leading_space`` says that the encoder puts a space in front, which decoding takes away again.
    """

    def __init__(
        self,
        encoder: Encoder,
        pieces: Sequence[bytes],
        *,
        special_ids: Mapping[str, int],
        hidden_ids: Set[int],
        end_ids: Set[int],
        bos_id: int | None,
        eos_id: int | None,
        strips_leading_space: bool,
    ) -> None:
        self.vocab_size = len(pieces)
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.end_ids = frozenset(end_ids)
        self.special_ids = special_ids
        self.strips_leading_space = strips_leading_space
        self._encoder = encoder
        self.pieces = pieces
        """The bytes of each token by its id."""
        self._hidden_ids = frozenset(hidden_ids)
        self._shown = list(pieces)
        for token_id in self._hidden_ids:
            self._shown[token_id] = b""

    @property
    def digest(self) -> bytes:
        """Tells the vocabulary from others, also from those that have the same tokens and make other ones of a text.

        What begins and ends a text is said by the model's file also where the tokens are of a tokenizer.json.
        """
        ids = self.bos_id, self.eos_id, sorted(self.end_ids), sorted(self._hidden_ids)
        return sha256(self._encoder.digest + repr(ids).encode()).digest()

    @property
    def control_texts(self) -> Set[str]:
        """The spellings of the tokens that text of a message must not become: all special ones but user-defined."""
        return self._encoder.control_texts

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        max_tokens: int | None = None,
        stand_ins: Mapping[int, str] | None = None,
    ) -> list[int]:
        """Token ids of ``text``.

        ``add_special`` adds BOS and EOS where the model wants them; a rendered chat template holds its own, so encode
        that with False. ``parse_special`` finds control tokens by their spelling; without it they are plain text.
        ``stand_ins`` are characters of ``text`` at which none begins, with those that they stand for.
        Raises `InvalidRequest` for a lone surrogate, and `ContextLengthExceeded` where there would be more than
        ``max_tokens``. Other threads run meanwhile, however long the text is.
        """
        for start in range(0, len(text), _STEP):
            try:
                text[start : start + _STEP].encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(
                    f"text holds a lone surrogate at character {start + error.start}; send valid Unicode"
                ) from None
        return self._encoder.encode(
            text, add_special=add_special, parse_special=parse_special, max_tokens=max_tokens, stand_ins=stand_ins
        )

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD. Control tokens are spelt out, or skipped.

        What was encoded comes back: spaces before punctuation are not "cleaned up".
        """
        if skip_special:
            ids = [token_id for token_id in ids if token_id not in self._hidden_ids]
        text = b"".join(map(self.token_bytes, ids))
        if self.strips_leading_space and ids and self.token_bytes(ids[0]).startswith(b" "):
            text = text[1:]
        return text.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token, a special one's text; none for an id beyond the vocabulary (padded models)."""
        return self.pieces[token_id] if 0 <= token_id < self.vocab_size else b""

    def shown_bytes(self, token_ids: Iterable[int]) -> bytes:
        """`token_bytes` of all ids that are not special, joined."""
        shown, vocab_size = self._shown, self.vocab_size
        return b"".join([shown[token_id] for token_id in token_ids if 0 <= token_id < vocab_size])

    def token_text(self, token_id: int | None) -> str:
        """`token_bytes` as text, empty for None: what a chat template knows as ``bos_token``."""
        return "" if token_id is None else self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which adds nothing to the text of an answer."""
        return token_id in self._hidden_ids


def of_model(metadata: Mapping[str, Any], tokenizer_json: str | Path) -> Tokenizer:
    """The tokenizer of the file ``tokenizer_json``, or, if none is named, the one in a GGUF file's metadata.

    Raises `ModelLoadFailed`.
    """
    return from_tokenizer_json(tokenizer_json, metadata) if tokenizer_json else from_metadata(metadata)


def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata (key -> Python value).

    Raises `ModelLoadFailed` naming the key: missing, invalid, an unknown model or an unknown pre-tokenizer.
    """
    words = vocabulary.from_metadata(metadata)
    specials = special_tokens.from_vocabulary(words)
    encoder = GgufEncoder(words, specials)
    return Tokenizer(
        encoder,
        encoder.pieces,
        special_ids=specials.ids,
        hidden_ids=specials.hidden_ids,
        end_ids=specials.end_ids,
        bos_id=words.bos_id,
        eos_id=words.eos_id,
        strips_leading_space=words.add_space_prefix,
    )


def from_tokenizer_json(path: str | Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``; ``metadata`` of the GGUF says which tokens begin and end a text.

    Raises `ModelLoadFailed` naming the file or the key, also when the two do not belong together.
    """
    encoder = JsonEncoder(Path(path))
    named = {name: _named_id(name, encoder, metadata or {}) for name in ("bos", "eos", "eot", "eom")}
    control = {text for text, token_id in encoder.special_ids.items() if token_id in encoder.control_ids}
    end_ids = {encoder.special_ids[text] for text in special_tokens.end_texts(control, encoder.special_ids.keys())}
    end_ids |= {token_id for name, token_id in named.items() if token_id is not None and name != "bos"}
    return Tokenizer(
        encoder,
        encoder.pieces,
        special_ids=encoder.special_ids,
        hidden_ids=encoder.control_ids | end_ids,
        end_ids=end_ids,
        bos_id=named["bos"],
        eos_id=named["eos"],
        strips_leading_space=encoder.strips_leading_space,
    )


def _named_id(name: str, encoder: JsonEncoder, metadata: Mapping[str, Any]) -> int | None:
    """The model's BOS, EOS, ... token, which must be the same one in both vocabularies."""
    key, tokens = f"{name}_token_id", metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        token_id = vocabulary.token_id(metadata, key, len(encoder.pieces))
        if token_id is None and f"tokenizer.ggml.{key}" in metadata:
            raise ModelLoadFailed(f"tokenizer: tokenizer.ggml.{key} is no id of its {len(encoder.pieces)} tokens")
        return token_id
    token_id = vocabulary.token_id(metadata, key, len(tokens))
    if token_id is not None and tokens[token_id] != encoder.token(token_id):
        raise ModelLoadFailed(
            f"tokenizer: token {token_id}, the model's {name.upper()}, is {encoder.token(token_id)!r} there but not in"
            " the model file; give the tokenizer.json that belongs to the model"
        )
    return token_id
