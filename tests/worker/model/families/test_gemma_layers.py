"""worker.model.families.gemma_layers: what layers are made of, of files that have or lack some keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.models.files import SMALL
from tests.models.gemma_specs import gemma2_q8_0
from tests.models.make_models import blocks
from worker.model.families.gemma_layers import HALF_SCALE
from worker.model.gguf import open_gguf
from worker.model.registry import load_model, read_model_config


def test_the_scale_of_geglu_keeps_what_real_files_have_within_float16() -> None:
    """Outputs up to 800,000, beside many small ones; what comes out of the norm after the next product."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(4, 2048)) * np.exp(rng.normal(0, 3, (4, 2048)))
    outputs *= 8e5 / np.abs(outputs).max()
    down = rng.normal(size=(2048, 64)) / 45
    exact = outputs @ down

    def normed(product: np.ndarray) -> np.ndarray:
        result: np.ndarray = product / np.sqrt((product**2).mean(axis=-1, keepdims=True))
        return result

    def error(scale: float) -> float:
        held = np.clip(outputs * scale, -65504, 65504).astype(np.float16).astype(np.float64)
        return float(np.abs(normed(held @ down) - normed(exact)).max())

    assert error(HALF_SCALE) < 1e-3 < 0.1 < error(1.0)


def test_the_first_files_of_gemma2_have_no_keys_for_window_and_soft_caps(tmp_path: Path) -> None:
    spec = gemma2_q8_0()
    left_out = ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
    keys = {key: value for key, value in spec.keys.items() if key not in left_out}
    write_model(replace(spec, keys=keys), tmp_path / "model.gguf", make_blocks=blocks)
    config = read_model_config(open_gguf(tmp_path / "model.gguf"))
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)
    assert [layer.window for layer in config.layers] == [4096, 0]


def test_a_router_that_its_scales_make_too_large_is_refused_by_name_and_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = bytearray(SMALL["gemma4-moe-q4_0"].read_bytes())
    for name, value in (("blk.0.ffn_gate_inp.weight", 3e38), ("blk.0.ffn_gate_inp.scale", 100.0)):
        tensor = open_gguf(SMALL["gemma4-moe-q4_0"]).tensors[name]
        data[tensor.offset : tensor.offset + tensor.num_bytes] = np.float32(value).tobytes() * (tensor.num_bytes // 4)
    path.write_bytes(data)
    with pytest.raises(ModelLoadFailed, match=r"model.gguf: tensor 'blk.0.ffn_gate_inp.weight' holds NaN or infinity"):
        load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)
