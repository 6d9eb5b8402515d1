"""worker.model.families.gemma: what the family has of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.models.files import SMALL
from tests.models.gemma_specs import gemma2_q8_0
from tests.models.make_models import blocks
from worker.commands.logits import compute_logits
from worker.model.families.gemma import HALF_SCALE
from worker.model.gguf import open_gguf
from worker.model.registry import Model, assemble_model, load_model, read_model_config
from worker.model.weights import Weights

PROMPT = list(range(40))


def load(name: str, **changes: object) -> Model:
    """A small model, some numbers of its configuration changed."""
    gguf, device = open_gguf(SMALL[name]), open_device("cpu")
    config = msgspec.structs.replace(read_model_config(gguf), **changes)  # type: ignore[arg-type]
    return assemble_model(config, Weights(gguf, device), device)


@pytest.mark.parametrize("cap", ["attention_softcap", "logit_softcap"])
def test_gemma2_has_soft_caps_on_scores_and_on_logits(cap: str) -> None:
    capped, free = (compute_logits(model, PROMPT) for model in (load("gemma2-q8_0"), load("gemma2-q8_0", **{cap: 0.0})))
    assert np.abs(capped).max() < 8
    assert np.abs(capped - free).max() > 0.05


def test_layers_with_a_window_have_a_rotation_of_their_own() -> None:
    config = read_model_config(open_gguf(SMALL["gemma3-q4_0"]))
    assert [layer.window for layer in config.layers] == [16] * 5 + [0]
    assert (config.rope.base, config.rope.factor) == (1e6, 8.0)
    assert (config.sliding_rope.base, config.sliding_rope.scaling) == (10_000.0, "none")
    same = compute_logits(load("gemma3-q4_0", sliding_rope=config.rope), PROMPT)
    assert np.abs(same - compute_logits(load("gemma3-q4_0"), PROMPT)).max() > 0.05


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
