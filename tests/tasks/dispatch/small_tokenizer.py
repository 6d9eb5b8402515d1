"""A tokenizer of nine tokens, among them half a character and a part of a stop string; it encodes nothing."""

from __future__ import annotations

from tasks.dispatch.engine.token_spellings import TokenSpellings
from worker.text.tokenizer import Tokenizer

END = 0
PIECES = [b"<end>", b"a", b"b", b"ab", b" ", b"\xc3", b"\xa9", b"stop", b"st"]
TOKENIZER = Tokenizer(
    None,  # type: ignore[arg-type]  # nothing is encoded here
    PIECES,
    special_ids={"<end>": END},
    hidden_ids={END},
    end_ids={END},
    bos_id=None,
    eos_id=END,
    strips_leading_space=False,
)
SPELLINGS = TokenSpellings(PIECES)
