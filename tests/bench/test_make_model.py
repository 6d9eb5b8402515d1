"""tests.bench.make_model: real shapes, real sizes, numbers of the wanted spread, the same file for the same seed."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from kernels.devices.open import open_device
from kernels.weights.dequant import dequantise
from kernels.weights.formats import FORMATS
from tests.bench.hybrid_specs import qwen35, qwen35moe
from tests.bench.make_model import MODELS, main, write_model
from tests.bench.model_specs import ModelSpec
from tests.bench.random_blocks import MADE_DIRECTLY, random_blocks
from tests.worker.model.tiny import FAMILIES
from worker.commands.logits import compute_logits
from worker.model.gguf import open_gguf
from worker.model.registry import load_model

PUBLISHED_BYTES = {
    "qwen2.5-0.5b": 491_000_000,
    "phi-3-mini-q4_k_m": 2_390_000_000,
    "phi-3-mini-q4_0": 2_180_000_000,
    "gpt-oss-20b": 12_100_000_000,
    "llama-3.1-8b": 4_920_000_000,
    "gemma-3-12b": 7_300_000_000,
    "qwen3-30b-a3b": 18_560_000_000,
    "qwen3.5-9b": 5_600_000_000,
    "qwen3.6-35b-a3b": 21_200_000_000,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_synthetic_model_is_as_large_as_the_published_one(name: str) -> None:
    num_layers, describe = MODELS[name]
    spec = describe(num_layers)
    tensor_bytes = sum(
        int(np.prod(tensor.shape[:-1])) * FORMATS[tensor.format].row_bytes(tensor.shape[-1]) for tensor in spec.tensors
    )
    vocabulary = spec.vocabulary
    texts = [*vocabulary.tokens, *vocabulary.merges]
    header_bytes = sum(8 + len(text.encode()) for text in texts) + 8 * len(vocabulary.tokens)
    assert abs(tensor_bytes + header_bytes - PUBLISHED_BYTES[name]) < 0.01 * PUBLISHED_BYTES[name]
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens) == len(vocabulary.types)


@pytest.mark.parametrize("name", MADE_DIRECTLY)
def test_random_blocks_hold_numbers_of_the_wanted_spread(name: str) -> None:
    format_ = FORMATS[name]
    blocks = random_blocks(format_, (16, 4096), 0.02, np.random.default_rng(0))
    values = np.empty((16, 4096), np.float32)
    dequantise(format_, blocks, out=values)
    assert abs(values.mean()) < 0.002
    assert values.std() == pytest.approx(0.02, rel=0.5 if name == "MXFP4" else 0.1)  # its scales are powers of two


def test_the_same_seed_writes_the_same_file_and_the_gguf_library_reads_it(tmp_path: Path) -> None:
    spec = FAMILIES["phi3"]()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_model(spec, tmp_path / name, seed=seed)
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != third
    library = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a").tensors}
    assert {name: (tensor.tensor_type.name, *reversed(tensor.shape.tolist())) for name, tensor in library.items()} == {
        tensor.name: (tensor.format, *tensor.shape) for tensor in spec.tensors
    }


@pytest.mark.parametrize(
    "spec",
    [
        qwen35(4, hidden=256, ffn=256, heads=2, kv_heads=1, num_regular=300),
        qwen35moe(4, hidden=256, ffn=256, heads=2, kv_heads=1, experts=4, used=2, num_regular=300),
    ],
    ids=lambda spec: spec.architecture,
)
def test_hybrid_models_are_written_as_they_are_read(spec: ModelSpec, tmp_path: Path) -> None:
    write_model(spec, tmp_path / "model.gguf")
    model = load_model(open_gguf(tmp_path / "model.gguf"), open_device("cpu"), lambda *_: None)
    assert [layer.recurrent for layer in model.config.layers] == [True, True, True, False]
    assert np.isfinite(compute_logits(model, [1, 2, 3])).all()


def test_the_command_line_takes_fewer_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "qwen2.5-0.5b", (2, lambda _layers: FAMILIES["qwen2"]()))
    assert main(["qwen2.5-0.5b", str(tmp_path / "out.gguf"), "--layers", "2"]) == 0
    assert open_gguf(tmp_path / "out.gguf").metadata["qwen2.block_count"] == 2
