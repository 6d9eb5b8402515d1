"""Small vocabularies in the order, with the kinds of tokens and the special tokens of the families' real ones."""

from __future__ import annotations

from gguf.constants import TokenType

from tests.bench.vocabularies import Vocabulary, byte_alphabet

MERGES = (
    "Ġ t;Ġ a;h e;i n;r e;o n;Ġt he;e r;Ġ s;a t;Ġ o;e n;Ġ w;i s;i t;o r;a n;Ġ c;e s;Ġ b;e d;Ġ f;in g;Ġ p;o u;Ġa n;"
    "a l;a r;Ġt o;Ġ m;Ġo f;Ġ in;Ġ d;Ġ h;Ġan d;a s;l e;H e;l l;u s;us er;He ll;Hell o;s t;as s;is t;ass ist;an t;"
    "assist ant;s y;sy st;e m;syst em"
)
"""Byte-level BPE's merges, best first, between semicolons: what English text gives, and the words of chat templates."""

PIECES = (
    "▁t;er;in;▁a;en;on;▁th;es;▁s;▁d;at;or;▁the;ing;an;▁w;al;ar;re;it;▁o;▁c;▁p;he;is;▁in;▁to;ed;▁b;▁m;▁of;nd;▁and;▁h;"
    "ll;ell;ello;▁hello;us;user;st;as;▁be;ou;le;▁f;▁;e;t;a;o;i;n;r;s;l;d;h;c;u;m;p;g;f;.;,;y;b;w;v;k;-;T;H;x;j;z;q;é;ü"
)
"""SentencePiece's pieces likewise: parts of English words, then single letters."""


def byte_level(pre: str, *control: str, defined: tuple[str, ...] = ()) -> Vocabulary:
    """The 256 bytes, a token for each of `MERGES`, then control tokens, then ``defined`` by the user: they are text."""
    merges = MERGES.split(";")
    regular = [*sorted(byte_alphabet(), key=ord), *(merge.replace(" ", "") for merge in merges)]
    return Vocabulary(
        "gpt2",
        pre,
        tokens=[*regular, *control, *defined],
        types=[TokenType.NORMAL] * len(regular)
        + [TokenType.CONTROL] * len(control)
        + [TokenType.USER_DEFINED] * len(defined),
        merges=merges,
    )


def sentencepiece(*control: str) -> Vocabulary:
    """``<unk>``, ``<s>``, ``</s>``, the 256 bytes, `PIECES` with falling scores, then more control tokens."""
    pieces = PIECES.split(";")
    return Vocabulary(
        "llama",
        "default",
        tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *control],
        types=[TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        + [TokenType.BYTE] * 256
        + [TokenType.NORMAL] * len(pieces)
        + [TokenType.CONTROL] * len(control),
        scores=[0.0] * 259 + [-float(rank) for rank in range(len(pieces))] + [0.0] * len(control),
    )


def gemma(*control: str) -> Vocabulary:
    """``<pad>``, ``<eos>``, ``<bos>``, ``<unk>``, more control tokens, the 256 bytes, `PIECES` with falling scores."""
    pieces = PIECES.split(";")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *control]
    types = [TokenType.CONTROL] * len(special)
    types[3] = TokenType.UNKNOWN
    return Vocabulary(
        "llama",
        "default",
        tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces],
        types=types + [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(pieces),
        scores=[0.0] * (len(special) + 256) + [-float(rank) for rank in range(len(pieces))],
    )


def character_level(control: tuple[str, ...], defined: tuple[str, ...]) -> Vocabulary:
    """Control tokens, the 256 bytes, characters, a token for each of `MERGES` with ``▁`` for a space, user's tokens."""
    merges = MERGES.replace("Ġ", "▁").split(";")
    characters = sorted({character for piece in (*merges, PIECES) for character in piece} - {" ", ";"})
    regular = [*characters, *(merge.replace(" ", "") for merge in merges)]
    return Vocabulary(
        "gemma4",
        "gemma4",
        tokens=[*control, *(f"<0x{byte:02X}>" for byte in range(256)), *regular, *defined],
        types=[TokenType.CONTROL] * len(control)
        + [TokenType.BYTE] * 256
        + [TokenType.NORMAL] * len(regular)
        + [TokenType.USER_DEFINED] * len(defined),
        merges=merges,
    )
