"""What a worker on a GPU needs of its memory, and what a GPU cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernels.devices.dry_run import DryRunDevice
from kernels.errors import DeviceUnavailable
from kernels.runtime.gpu_spec import A100, H100, GpuSpec
from tests.models.files import NOT_ON_GPU, SMALL
from tests.worker.model.tiny import write_one_kernel, write_tiny
from worker import load as loading
from worker.commands.main import run
from worker.commands.vram_plan import refusals
from worker.model.gguf import open_gguf

USES = ("weights", "weight_copies", "kv_cache", "scratch", "step_buffers", "graphs", "cuda_context")
STATE_BYTES = 4 * (3 * 128 + 4 * 16 * 16)  # of the one delta net of qwen35-q4_k_m
NO_GPU = DeviceUnavailable("cuda:0: there is no CUDA device here; install NVIDIA's driver, or choose --device cpu")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise NO_GPU

    monkeypatch.setattr(loading, "open_device", refuse)
    monkeypatch.delenv("ORCD_VRAM_BYTES", raising=False)


def test_a_plan_is_made_as_far_as_it_can_be_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_gpu: None
) -> None:
    path = write_tiny("gpt-oss", tmp_path / "tiny.gguf")
    assert run(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vram_plan"] is None
    assert run(["inspect", str(path), "--json", "--device=cuda:0"]) == 0
    plan = json.loads(capsys.readouterr().out)["vram_plan"]
    assert plan["total_bytes"] == sum(plan[f"{name}_bytes"] for name in USES)
    assert min(plan[f"{name}_bytes"] for name in USES if name != "weight_copies") > 0
    assert (plan["available_bytes"], plan["fits"]) == (None, None)
    assert "there is no CUDA device" in plan["note"]
    assert run(["inspect", str(path), "--device=cuda:0"]) == 0
    text = capsys.readouterr().out
    assert "MiB weights" in text and "MiB in all" in text and "there is no CUDA device" in text


def test_states_of_recurrent_layers_are_told_beside_the_kv_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, without_gpu: None
) -> None:
    monkeypatch.setenv("ORCD_MAX_SEQUENCES", "3")
    monkeypatch.setenv("ORCD_STATE_CACHE_BYTES", str(2 * STATE_BYTES))
    path = str(SMALL["qwen35-q4_k_m"])
    assert run(["inspect", path, "--json", "--device=cuda:0"]) == 0
    plan = json.loads(capsys.readouterr().out)["vram_plan"]
    assert (plan["state_slots"], plan["states_bytes"]) == (5, 5 * STATE_BYTES)
    assert plan["total_bytes"] == plan["states_bytes"] + sum(plan[f"{name}_bytes"] for name in USES)
    assert run(["inspect", path, "--device=cuda:0"]) == 0
    assert "MiB states in 5 slots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("vram_bytes", "fits", "answer"), [(8 * 10**9, True, "it fits"), (10**6, False, "INSUFFICIENT_VRAM")]
)
def test_a_budget_that_is_set_decides_whether_it_would_fit(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    without_gpu: None,
    vram_bytes: int,
    fits: bool,
    answer: str,
) -> None:
    monkeypatch.setenv("ORCD_VRAM_BYTES", str(vram_bytes))
    path = write_tiny("qwen2", tmp_path / "tiny.gguf")
    run(["inspect", str(path), "--json", "--device=cuda:0"])
    plan = json.loads(capsys.readouterr().out)["vram_plan"]
    assert (plan["available_bytes"], plan["fits"]) == (vram_bytes, fits)
    run(["inspect", str(path), "--device=cuda:0"])
    assert answer in capsys.readouterr().out


def test_8_bits_for_keys_and_values_hold_nearly_twice_the_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCD_VRAM_BYTES", str(10**9))
    monkeypatch.setenv("ORCD_KV_CACHE_BYTES", str(10**8))
    path = write_tiny("qwen2", tmp_path / "tiny.gguf")
    plans = []
    for kind in ("f16", "q8"):
        assert run(["inspect", str(path), "--json", "--device=cuda:0", f"--kv-cache-type={kind}"]) == 0
        plans.append(json.loads(capsys.readouterr().out)["vram_plan"])
    plain, quantised = plans
    assert (plain["kv_cache_type"], quantised["kv_cache_type"]) == ("float16", "q8")
    assert quantised["kv_cache_tokens"] == pytest.approx(plain["kv_cache_tokens"] * 2 * 64 / (64 + 2), rel=0.01)
    assert quantised["kv_cache_bytes"] == pytest.approx(10**8, rel=0.01)


def test_it_is_told_how_many_sequences_run_all_layers_in_one_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_gpu: None
) -> None:
    plan = plan_of(write_one_kernel(tmp_path / "qwen2.gguf"), capsys)
    assert (plan["one_kernel_context"], plan["one_kernel_obstacle"]) == (2048, None)
    assert plan["one_kernel_contexts"] == {"1": 2048, "2": 2560, "4": 2560, "8": 1024}
    path = (
        "all layers in one kernel up to 2,048 tokens of context (2,560 of 2, 2,560 of 4, 1,024 of 8), then one by one"
    )
    assert f"few sequences   {path}" in plan["text"]


@pytest.mark.parametrize(
    ("family", "gpu", "why"),
    [
        ("qwen2", A100, "it is for Hopper (sm_90a), and this GPU is sm_80"),
        (
            "qwen2",
            H100,
            "its blocks cannot share out matrices of these widths; where layers are wide, it is for heads of 96, "
            "and these have 64",
        ),
        (
            "llama",
            H100,
            "it is for heads of 64, and these have 128; where layers are wide, it is for heads of 96, "
            "and these have 128",
        ),
        ("qwen3moe", H100, "it is for layers without experts"),
        ("gpt-oss", H100, "it is for models of Llama's family, and this is gpt-oss"),
    ],
)
def test_it_is_told_why_one_sequence_runs_its_layers_one_by_one(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    gpu: GpuSpec,
    why: str,
) -> None:
    monkeypatch.setattr(loading, "open_device", lambda name, **_options: DryRunDevice(name, gpu))
    plan = plan_of(write_tiny(family, tmp_path / "tiny.gguf"), capsys)
    assert (plan["device_name"], plan["note"]) == (f"a planned {gpu.arch}", None)
    assert (plan["one_kernel_context"], plan["one_kernel_obstacle"]) == (None, why)
    assert f"one sequence    layers one by one, not all in one kernel: {why}" in plan["text"]


def plan_of(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The plan of a worker on cuda:0, and what a person is shown as its ``text``."""
    for option in ("--json", "--device=cuda:0"):
        assert run(["inspect", str(path), "--device=cuda:0", option]) == 0
    plan, text = capsys.readouterr().out.split("\n", 1)
    return json.loads(plan)["vram_plan"] | {"text": text}


@pytest.mark.parametrize("name", SMALL)
def test_what_no_gpu_can_run_is_told_of_the_models_that_the_tests_on_gpus_leave_out(name: str) -> None:
    found = refusals(open_gguf(SMALL[name]))
    assert len(found) == (1 if name.startswith(NOT_ON_GPU) else 0)
    assert all(text.startswith("not on a GPU: ") and "--device cpu" in text for text in found)
