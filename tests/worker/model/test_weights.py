"""worker.model.weights: tensors that are missing, misshapen, of a foreign type or not finite are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import open_device
from kernels.weights import weight_store
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.bench.model_specs import TensorSpec
from tests.worker.model.tiny import FAMILIES, write_tiny
from worker.model import weights as module
from worker.model.gguf import open_gguf
from worker.model.registry import assemble_model, load_model, read_model_config
from worker.model.weights import RowPart, Weights


def load(path: Path) -> None:
    load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


def changed(tmp_path: Path, name: str, tensor: TensorSpec | None) -> Path:
    spec = FAMILIES["qwen2"]()
    tensors = [tensor if old.name == name else old for old in spec.tensors]
    write_model(replace(spec, tensors=[kept for kept in tensors if kept is not None]), tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path) -> None:
    name = "blk.1.ffn_down.weight"
    with pytest.raises(ModelLoadFailed, match=f"tensor '{name}' is missing"):
        load(changed(tmp_path, name, None))
    with pytest.raises(
        ModelLoadFailed, match=rf"'{name}' has shape \[64, 256\], but the metadata asks for \[128, 256\]"
    ):
        load(changed(tmp_path, name, TensorSpec(name, "Q8_0", (64, 256))))


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-30])
def test_a_factor_that_no_frequency_can_be_divided_by_is_refused(tmp_path: Path, factor: float) -> None:
    spec = FAMILIES["qwen2"]()
    factors = TensorSpec("rope_freqs.weight", "F32", (32,), mean=factor, deviation=0.0)
    write_model(replace(spec, tensors=[*spec.tensors, factors]), tmp_path / "model.gguf")
    with pytest.raises(ModelLoadFailed, match=r"model.gguf: tensor 'rope_freqs.weight' holds a factor below 1e-06"):
        load(tmp_path / "model.gguf")


def test_a_type_that_has_no_kernels_is_named(tmp_path: Path) -> None:
    path = write_tiny("qwen2", tmp_path / "model.gguf")
    data = path.read_bytes()
    at = data.index(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight") + 4 + 16
    path.write_bytes(data[:at] + (40).to_bytes(4, "little") + data[at + 4 :])  # NVFP4: 36 bytes for 64, fits in Q5_0
    with pytest.raises(ModelLoadFailed, match=r"'blk.1.ffn_up.weight' has type NVFP4; supported are F32, F16"):
        load(path)


def test_what_the_cuda_kernels_cannot_work_on_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_store, "MAX_EXPERTS_USED", 1)
    device, gguf = DryRunDevice("cuda:0"), open_gguf(write_tiny("gpt-oss", tmp_path / "model.gguf"))
    with pytest.raises(ModelLoadFailed, match=r"model.gguf: tensor 'blk.0.ffn_gate_inp.weight' chooses \d+ experts"):
        assemble_model(read_model_config(gguf), Weights(gguf, device), device)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_that_is_not_finite_is_found_in_every_format(family: str, tmp_path: Path) -> None:
    path = write_tiny(family, tmp_path / "model.gguf")
    whole = path.read_bytes()
    by_format = {tensor.format.name: tensor for tensor in open_gguf(path).tensors.values()}
    assert len(by_format) >= 3
    for name, tensor in by_format.items():
        bad = {"F32": np.float32(np.nan).tobytes(), "MXFP4": b"\xff"}.get(name, np.float16(np.inf).tobytes())
        at = tensor.offset + tensor.num_bytes - tensor.format.block_bytes + (208 if name == "Q6_K" else 0)
        path.write_bytes(whole[:at] + bad + whole[at + len(bad) :])
        with pytest.raises(ModelLoadFailed, match=f"tensor '{tensor.name}' holds NaN or infinity"):
            load(path)


def test_a_part_of_the_rows_of_a_tensor_is_a_projection_of_its_own(tmp_path: Path) -> None:
    gguf, device = open_gguf(write_tiny("qwen2", tmp_path / "model.gguf")), open_device("cpu")
    tensor = gguf.tensors["blk.0.ffn_up.weight"]  # 256 rows
    parts = RowPart(0, 3, 8), RowPart(3, 8, 8)
    specs = [
        module.TensorSpec("ffn_up", rows, bias=False, part=part) for rows, part in zip((96, 160), parts, strict=True)
    ]
    first, second = Weights(gguf, device).layer(0).projection(*specs, num_inputs=128)
    row = np.arange(256).reshape(-1, 8)
    np.testing.assert_array_equal(first.matrix.data, tensor.data[row[:, :3].ravel()])
    np.testing.assert_array_equal(second.matrix.data, tensor.data[row[:, 3:].ravel()])
    with pytest.raises(ModelLoadFailed, match=r"has shape \[256, 128\], but the metadata asks for \[248, 128\]"):
        Weights(gguf, device).layer(0).projection(
            module.TensorSpec("ffn_up", 93, bias=False, part=parts[0]), num_inputs=128
        )
