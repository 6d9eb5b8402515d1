"""``orcd inspect``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import decoders

from tests.models.files import SMALL
from tests.orcd.cli.command_line import one_error
from tests.worker.model.tiny import write_tiny
from tests.worker.text.vocabularies import bpe_metadata
from worker.commands.main import run
from worker.model.gguf import open_gguf
from worker.text import vocabulary
from worker.text.encoders import bpe


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert run(["inspect", str(path), "--json"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    return json.loads(line)


def test_a_supported_model_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny("gpt-oss", tmp_path / "tiny.gguf")
    report = inspect(path, capsys)
    assert (report["architecture"], report["name"]) == ("gpt-oss", "Synthetic gpt-oss")
    assert report["supported"] and report["problems"] == report["warnings"] == []
    assert (report["num_layers"], report["context_length"], report["vocab_size"]) == (2, 131072, 1390)
    assert (report["tokenizer"], report["chat_template"]) == ("gpt2 / gpt-4o", True)
    assert report["vram_kv_bytes_per_1k_tokens"] == 2 * 2 * 1 * 64 * 2 * 1024
    assert report["kv_q8_bytes_per_1k_tokens"] == 2 * 2 * 1 * (64 + 2) * 1024
    types = {entry["type"]: entry for entry in report["tensor_types"]}
    assert types["MXFP4"]["tensors"] == {f"blk.*.ffn_{part}_exps.weight": 2 for part in ("gate", "up", "down")}
    assert types["MXFP4"]["count"] == 6 and types["MXFP4"]["bytes"] == 6 * 4 * 64 * 32 // 32 * 17
    assert sum(entry["bytes"] for entry in types.values()) == report["vram_weights_bytes"]
    assert run(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for part in (
        "gpt-oss",
        "1,390 tokens",
        "blk.*.ffn_up_exps.weight x 2",
        "524 KB for KV per 1,024 tokens (float16)",
        "270 KB for KV per 1,024 tokens (q8)",
        "supported       yes",
    ):
        assert part in text


def test_a_model_with_recurrent_layers_tells_its_state_and_where_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    report = inspect(SMALL["qwen35-q4_k_m"], capsys)
    assert report["supported"] and report["num_layers"] == 2
    assert report["state_bytes_per_sequence"] == 4 * (3 * 128 + 4 * 16 * 16)
    assert report["vram_kv_bytes_per_1k_tokens"] == 1 * 2 * 2 * 16 * 2 * 1024  # of the one layer with attention
    assert run(["inspect", str(SMALL["qwen35-q4_k_m"])]) == 0
    out = capsys.readouterr().out
    assert "5.63 KB for the state of a sequence (float32)" in out
    assert "warning" not in out


def test_what_stands_in_the_way_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny("qwen2", tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_doun.weight"))
    report = inspect(path, capsys)
    assert not report["supported"]
    assert report["problems"] == ["tensor 'blk.1.ffn_down.weight' is missing"]
    assert report["num_layers"] == 2
    assert run(["inspect", str(path)]) == 0
    assert "tensor 'blk.1.ffn_down.weight' is missing" in capsys.readouterr().out


def test_a_tokenizer_that_a_worker_is_given_takes_the_place_of_the_files_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny("qwen2", tmp_path / "tiny.gguf")
    library = bpe.build(vocabulary.from_metadata(bpe_metadata("a b")))
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    pre = b"tokenizer.ggml.pre" + b"\x08\0\0\0" + b"\x05" + bytes(7)
    path.write_bytes(path.read_bytes().replace(pre + b"qwen2", pre + b"quasi"))
    assert "tokenizer.ggml.pre 'quasi' is not supported" in inspect(path, capsys)["problems"][0]
    assert run(["inspect", str(path), "--json", "--tokenizer", str(tmp_path / "tokenizer.json")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tokenizer"] == str(tmp_path / "tokenizer.json")
    (problem,) = report["problems"]
    assert "give the tokenizer.json that belongs to the model" in problem


def test_what_is_odd_in_a_vocabulary_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny("qwen2", tmp_path / "tiny.gguf")
    key = b"tokenizer.ggml.eos_token_id" + b"\x04\0\0\0"
    before, after = path.read_bytes().split(key)
    path.write_bytes(before + key + b"\xff\xff\xff\xff" + after[4:])
    report = inspect(path, capsys)
    assert report["supported"]
    assert report["warnings"] == [
        "tokenizer.ggml.eos_token_id is 4294967295, which is no id of 593 tokens; the default is used"
    ]
    assert run(["inspect", str(path)]) == 0
    assert "  warning         tokenizer.ggml.eos_token_id is" in capsys.readouterr().out


def test_a_chat_template_that_is_no_jinja_is_reported_and_the_model_still_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny("gpt-oss", tmp_path / "tiny.gguf")
    template = open_gguf(path).metadata["tokenizer.chat_template"].encode()
    path.write_bytes(path.read_bytes().replace(template, b"{% for".ljust(len(template))))
    report = inspect(path, capsys)
    assert report["supported"] and report["chat_template"]
    assert "not a valid template" in report["chat_template_problem"]
    assert "--chat-template FILE" in report["chat_template_problem"]
    assert run(["inspect", str(path)]) == 0
    assert "chat template   tokenizer.chat_template is not a valid template" in capsys.readouterr().out


def test_what_is_no_model_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    assert run(["inspect", str(tmp_path / "text.gguf")]) == 1
    assert "is not a GGUF file" in one_error(capsys, "MODEL_LOAD_FAILED")
