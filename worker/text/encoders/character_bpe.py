"""BPE on characters with byte fallback (``tokenizer.ggml.model`` = ``gemma4``) on the ``tokenizers`` library.

Spaces are spelt ``▁``, and merges cross them: text is cut only around newlines. A character without a token becomes its
UTF-8 bytes, tokens ``<0x00>`` to ``<0xFF>``.
"""

from __future__ import annotations

import tokenizers
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import BPE

from orcd.errors import ModelLoadFailed
from worker.text.encoders.bpe import merges_of, misfit
from worker.text.encoders.spm import SPACE, pieces
from worker.text.vocabulary import Vocabulary

__all__ = ["build", "pieces"]

_LINES = r"[^\n]+|\n+"


def build(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The encoder of plain text: no special tokens, no BOS. Raises `ModelLoadFailed` naming the key."""
    ids = vocabulary.ids
    unknown = None if vocabulary.unknown_id is None else vocabulary.tokens[vocabulary.unknown_id]
    if unknown is None and not all(f"<0x{byte:02X}>" in ids for byte in range(256)):
        raise ModelLoadFailed("tokenizer.ggml.unknown_token_id is missing, and not every byte has a token")
    merges = merges_of(vocabulary)
    try:
        model = BPE(ids, [*merges, *_newlines(ids, merges)], byte_fallback=True, unk_token=unknown)
    except Exception as error:  # the library raises nothing more specific
        raise misfit(error) from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_LINES), "isolated")
    return tokenizer


def _newlines(ids: dict[str, int], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The merges that make a token of a row of newlines and that the file does not have: llama.cpp looks rows up."""
    rows = sorted((token for token in ids if token and not token.strip("\n")), key=len)
    pairs = [(row[:cut], row[cut:]) for row in rows for cut in range(1, len(row)) if row[:cut] in ids]
    known = set(merges) if pairs else set()
    return [pair for pair in pairs if pair[1] in ids and pair not in known]
