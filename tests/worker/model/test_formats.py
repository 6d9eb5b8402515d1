"""Every tensor type, for every consumer of weights, and all mixed in one file."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import cycle
from pathlib import Path

import gguf
import numpy as np
import pytest

from kernels.devices.open import open_device
from kernels.weights.dequant import dequantise
from kernels.weights.formats import FORMATS
from tests.bench.make_model import tensor_blocks, write_model
from tests.bench.model_specs import ModelSpec, TensorSpec, gpt_oss, qwen2
from tests.bench.random_blocks import MADE_DIRECTLY
from tests.worker.model.stepping import logits_alone
from worker.model.gguf import open_gguf
from worker.model.registry import load_model

SPECS = {
    "qwen2": qwen2(3, hidden=256, ffn=256, heads=4, kv_heads=2, num_regular=300),
    "gpt-oss": gpt_oss(3, hidden=256, ffn=256, heads=4, kv_heads=2, experts=3, used=2, num_regular=300),
}
IDS = [5, 299, 17, 0, 44]


@lru_cache(maxsize=128)  # those of one model
def blocks_of(tensor: TensorSpec) -> np.ndarray:
    """A tensor's contents in its format, always the same."""
    rng = np.random.default_rng(list(tensor.name.encode()))
    if tensor.format not in MADE_DIRECTLY:
        values = rng.normal(scale=tensor.deviation, size=tensor.shape).astype(np.float32)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[tensor.format]).view(np.uint8)
    return tensor_blocks(tensor, rng)


def logits_of(spec: ModelSpec, path: Path) -> np.ndarray:
    """Logits of ``spec`` with its tensors as they are."""
    write_model(spec, path, make_blocks=lambda tensor, _rng: blocks_of(tensor))
    return logits_alone(load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None), IDS)


def logits_in_float32(spec: ModelSpec, path: Path) -> np.ndarray:
    """Logits of ``spec`` with every tensor expanded to F32 in the file."""
    formats = {tensor.name: tensor.format for tensor in spec.tensors}

    def expanded(tensor: TensorSpec, _rng: np.random.Generator) -> np.ndarray:
        values = np.empty(tensor.shape, np.float32)
        format_ = formats[tensor.name]
        dequantise(FORMATS[format_], blocks_of(replace(tensor, format=format_)), out=values)
        return values.view(np.uint8)

    tensors = [replace(tensor, format="F32") for tensor in spec.tensors]
    write_model(replace(spec, tensors=tensors), path, make_blocks=expanded)
    return logits_alone(load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None), IDS)


def with_formats(spec: ModelSpec, formats: list[str]) -> ModelSpec:
    """``spec`` with its matrices in ``formats``, one after the other and from the beginning again."""
    names = [tensor.name for tensor in spec.tensors if tensor.name.endswith(".weight") and len(tensor.shape) > 1]
    chosen = dict(zip(names, cycle(formats), strict=False))
    return replace(
        spec, tensors=[replace(tensor, format=chosen.get(tensor.name, tensor.format)) for tensor in spec.tensors]
    )


@pytest.mark.parametrize("family", SPECS)
@pytest.mark.parametrize("formats", [[name] for name in FORMATS] + [list(FORMATS)], ids="+".join)
def test_a_model_in_any_mixture_of_formats_computes_as_its_numbers_in_float32(
    family: str, formats: list[str], tmp_path: Path
) -> None:
    spec = with_formats(SPECS[family], formats)
    assert {tensor.format for tensor in spec.tensors} == {*formats, "F32"}
    logits = logits_of(spec, tmp_path / "model.gguf")
    assert np.isfinite(logits).all() and logits.std() > 0
    np.testing.assert_array_equal(logits, logits_in_float32(spec, tmp_path / "float32.gguf"))
