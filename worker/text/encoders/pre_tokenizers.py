"""Where byte-level BPE cuts text into words, by the name in ``tokenizer.ggml.pre``."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class PreTokenizer(msgspec.Struct, frozen=True):
    """``expressions`` are applied one after the other; each cuts further, at both ends of every match.

    With ``looks_words_up`` a word that the vocabulary holds is one token, whatever the merges say. ``adds_bos`` is what
    holds where the file does not say whether a text begins with BOS.
    """

    expressions: tuple[str, ...]
    looks_words_up: bool = False
    adds_bos: bool = False


_CONTRACTION = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|" + _REST.replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL, _CAPITALS = (rf"[^\r\n\p{{L}}\p{{N}}]?{case}" for case in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"))
_GPT4O = rf"{_CAMEL}(?:{_CONTRACTION})?|{_CAPITALS}(?:{_CONTRACTION})?|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}"
_TEKKEN = rf"{_CAMEL}|{_CAPITALS}|\p{{N}}|{_REST_WITH_SLASH}"
_DEEPSEEK_LETTERS = (  # cased letters, without some alphabets and letters that Unicode had later
    r"\s?[\p{Lu}\p{Ll}\p{Lt}&&[^"
    "\u0560-\u0588\u10c7\u10cd\u10d0-\u10ff\u1c80-\u1c8a\u2d00-\u2d2d\ua790-\ua7ff\uab30-\uab6f"
    "\U00010570-\U000105bc\U00010d50-\U00010d85\U00016e40-\U00016e7f\U0001d400-\U0001d7cb\U0001df00-\U0001df1e]]+"
)
_DEEPSEEK_MARKS = r"\s?[!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

_NAMES: Mapping[PreTokenizer, str] = {
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): "default",
    PreTokenizer((_GPT2,)): "gpt-2 phi-2 mpt olmo jais trillion exaone4 gigachat mellum a.x-4.0 granite-docling",
    PreTokenizer((r"\p{N}", _GPT2)): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    PreTokenizer(
        (_LLAMA3,), looks_words_up=True, adds_bos=True
    ): "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    PreTokenizer((_LLAMA3,), looks_words_up=True): "glm4 chatglm-bpe",
    PreTokenizer((_LLAMA3,)): "dbrx smaug-bpe",
    PreTokenizer((_QWEN2,)): "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo solar-open grok-2",
    PreTokenizer((_QWEN35,)): "qwen35",
    PreTokenizer((_GPT4O,)): "gpt-4o llama4 kanana2 minimax-m2",
    PreTokenizer((_TEKKEN,), looks_words_up=True, adds_bos=True): "tekken",
    PreTokenizer((r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_MARKS, r"\s+$", _EAST_ASIAN, r"\p{N}+")): "deepseek-llm",
    PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")): "deepseek-coder",
    PreTokenizer(_DEEPSEEK_V3): "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
}

PRE_TOKENIZERS = {name: pre_tokenizer for pre_tokenizer, names in _NAMES.items() for name in names.split()}
"""By name. The expressions are those of the models' own tokenizer.json files; llama.cpp's differ from ``gpt-4o`` and
``tekken`` at combining marks."""
