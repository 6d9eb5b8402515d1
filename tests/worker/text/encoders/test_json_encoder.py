"""tokenizer.json files, written here with the library that reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from orcd.errors import ModelLoadFailed
from tests.worker.text.vocabularies import bpe_metadata, spm_metadata
from worker.text import tokenizer, vocabulary
from worker.text.detokenizer import Detokenizer
from worker.text.encoders import bpe

CONTROL = ("<|im_start|>", "<|im_end|>")


def bpe_file(folder: Path, metadata: dict[str, Any]) -> Path:
    """The same vocabulary as ``metadata`` has, with BOS added by the post-processor."""
    library = bpe.build(vocabulary.from_metadata(metadata))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(CONTROL))
    library.add_tokens(["<user>"])
    library.post_processor = processors.TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", 257)])
    library.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_ids_are_those_of_the_library(tmp_path: Path) -> None:
    metadata = bpe_metadata("a b", control=CONTROL, bos_token_id=257, eos_token_id=258)
    subject = tokenizer.from_tokenizer_json(bpe_file(tmp_path, metadata), metadata)
    assert subject.encode("abé") == [257, 256, 0xC3, 0xA9]
    assert subject.encode("ab<|im_end|>", add_special=False, parse_special=True) == [256, 258]
    assert 258 not in subject.encode("ab<|im_end|>", add_special=False)
    assert subject.encode("<user>", add_special=False) == [259]
    assert subject.decode([256, 0xC3, 0xA9, 258, 259]) == "abé<|im_end|><user>"
    assert subject.decode([256, 258, 259], skip_special=True) == "ab<user>"
    assert (subject.bos_id, subject.eos_id, subject.end_ids) == (257, 258, {258})
    assert subject.vocab_size == 260


def test_without_a_model_well_known_tokens_end_an_answer(tmp_path: Path) -> None:
    subject = tokenizer.from_tokenizer_json(bpe_file(tmp_path, bpe_metadata("a b", control=CONTROL)))
    assert (subject.bos_id, subject.eos_id, subject.end_ids) == (None, None, {258})


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    metadata = bpe_metadata("a b", control=CONTROL, eos_token_id=258)
    path = bpe_file(tmp_path, metadata)
    metadata["tokenizer.ggml.tokens"][258] = "<|other|>"
    with pytest.raises(ModelLoadFailed, match="EOS"):
        tokenizer.from_tokenizer_json(path, metadata)
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.ggml\.eos_token_id"):
        tokenizer.from_tokenizer_json(path, {"tokenizer.ggml.eos_token_id": 1000})


def test_sentencepiece_style_files_decode_spaces_and_bytes(tmp_path: Path) -> None:
    tokens = [*spm_metadata()["tokenizer.ggml.tokens"], "▁", "a"]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(BPE(ids, [], byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    subject = tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json")
    ids_of_text = subject.encode("a é")
    assert ids_of_text == [259, 260, 259, 0xC3 + 3, 0xA9 + 3]
    assert subject.decode(ids_of_text) == "a é"
    assert "".join(Detokenizer(subject).feed([token_id]).text for token_id in ids_of_text[:2]) == "a"
    assert subject.end_ids == {2}
    library.decoder = decoders.Metaspace(prepend_scheme="never")
    library.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json").decode([259, 260]) == " a"


def test_what_is_no_tokenizer_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.json: No such file"):
        tokenizer.from_tokenizer_json(path)
    for content in (b"", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ModelLoadFailed, match=r"tokenizer\.json is not a tokenizer\.json"):
            tokenizer.from_tokenizer_json(path)


def test_a_decoder_that_is_not_known_is_refused(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(BPE({"a": 0}, []))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    for decoder in (None, decoders.WordPiece()):
        if decoder is not None:
            library.decoder = decoder
        library.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ModelLoadFailed, match="decoder"):
            tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json")


def test_a_token_id_out_of_all_bounds_reserves_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    library = tokenizers.Tokenizer(BPE({"a": 0}, []))
    library.decoder = decoders.ByteLevel()
    library.save(str(path))
    path.write_text(re.sub(r'"a": 0', '"a": 4000000000', path.read_text()))
    with pytest.raises(ModelLoadFailed, match="token ids up to 4000000000"):
        tokenizer.from_tokenizer_json(path)


def test_its_digest_tells_it_from_others_with_the_same_tokens(tmp_path: Path) -> None:
    own, other = (
        tokenizer.from_tokenizer_json(
            bpe_file(tmp_path, bpe_metadata("a b", "b c", control=CONTROL) | {"tokenizer.ggml.merges": merges})
        )
        for merges in (["a b", "b c"], ["b c", "a b"])
    )
    again = tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json")
    assert other.pieces == own.pieces
    assert other.digest == again.digest != own.digest


def test_so_it_does_where_the_models_file_names_other_tokens_that_end_an_answer(tmp_path: Path) -> None:
    metadata = bpe_metadata("a b", control=CONTROL, eos_token_id=258)
    path = bpe_file(tmp_path, metadata)
    own = tokenizer.from_tokenizer_json(path, metadata)
    other = tokenizer.from_tokenizer_json(path, metadata | {"tokenizer.ggml.eos_token_id": 97})
    assert other.digest != own.digest == tokenizer.from_tokenizer_json(path, dict(metadata)).digest
