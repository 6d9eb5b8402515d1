"""``orcd tokenize``: text to token ids and back, with the tokenizer of a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers


class TokenizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text to tokenise; the two flags are those of `worker.text.tokenizer.Tokenizer.encode`."""

    text: str
    add_special: bool = True
    parse_special: bool = False


class TokenizeCommand:
    """Answers requests with the tokenizer of a GGUF file. Raises `ModelLoadFailed` where there is none."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = tokenizers.from_metadata(open_gguf(model).metadata)

    def answer(self, request: TokenizeRequest) -> dict[str, Any]:
        """The ids, and the text that they stand for, control tokens spelt out. Raises `InvalidRequest`."""
        ids = self._tokenizer.encode(request.text, add_special=request.add_special, parse_special=request.parse_special)
        return {"ids": ids, "text": self._tokenizer.decode(ids)}
