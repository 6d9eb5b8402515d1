"""What a worker on the CPU needs of a machine's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernels.devices.open import open_device
from tests.models.files import SMALL
from tests.orcd.cli.command_line import one_error
from tests.worker.model.tiny import write_tiny
from worker.commands import ram_plan as module
from worker.commands.main import run
from worker.commands.ram_plan import plan_ram
from worker.engine.engine import Engine
from worker.load import open_configured_device
from worker.model.gguf import open_gguf
from worker.model.registry import load_model
from worker.settings import Settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny("qwen2", tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    "options",
    [{}, {"kv_cache_bytes": 1 << 20}, {"max_sequences": 3, "context_length": 64}, {"kv_cache_type": "q8"}],
)
def test_the_cache_is_that_of_the_engine(path: Path, options: dict[str, Any]) -> None:
    gguf, settings = open_gguf(path), Settings(device="cpu", model=str(path), **options)
    plan = plan_ram(gguf, settings)
    engine = Engine(load_model(gguf, open_configured_device(settings), lambda *_: None), settings)
    assert plan.kv_cache_tokens == engine.stats(memory_bytes=0).kv_blocks_total * settings.kv_block_tokens
    assert plan.total_bytes == sum(
        (
            plan.weights_bytes,
            plan.kv_cache_bytes,
            plan.states_bytes,
            plan.dequant_cache_bytes,
            plan.activations_bytes,
            plan.processes_bytes,
        )
    )


def test_the_same_memory_holds_more_tokens_of_8_bits(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, quantised = (
        plan_ram(open_gguf(path), Settings(device="cpu", kv_cache_bytes=10**7, kv_cache_type=kind))
        for kind in ("f16", "q8")
    )
    assert quantised.kv_cache_tokens == pytest.approx(plain.kv_cache_tokens * 4 * 64 / (64 + 2), rel=0.01)
    assert run(["inspect", str(path), "--device", "cpu", "--kv-cache-type", "q8"]) == 0
    out = capsys.readouterr().out
    assert " tokens (q8)\n" in out and " tokens (float16)\n" in out


def test_states_are_planned_for(capsys: pytest.CaptureFixture[str]) -> None:
    path = SMALL["qwen35-q4_k_m"]
    model = load_model(open_gguf(path), open_device("cpu"), lambda *_: None)
    settings = Settings(device="cpu", model=str(path), max_sequences=3, state_cache_bytes=2 * model.bytes_per_state)
    plan = plan_ram(open_gguf(path), settings)
    assert (plan.state_slots, plan.states_bytes) == (5, 5 * model.bytes_per_state)
    without = plan_ram(open_gguf(path), Settings(device="cpu", model=str(path), max_sequences=3, state_cache_bytes=1))
    assert plan.total_bytes - without.total_bytes == 2 * model.bytes_per_state
    assert run(["inspect", str(path), "--device", "cpu"]) == 0
    assert "states in" in capsys.readouterr().out


def test_a_model_without_recurrent_layers_has_no_states(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_ram(open_gguf(path), Settings(device="cpu"))
    assert (plan.state_slots, plan.states_bytes) == (0, 0)
    assert run(["inspect", str(path), "--device", "cpu"]) == 0
    assert "state" not in capsys.readouterr().out


def test_more_at_a_time_needs_more(path: Path) -> None:
    gguf = open_gguf(path)
    few, many = (plan_ram(gguf, Settings(device="cpu", max_sequences=n, step_tokens=8 * n)) for n in (8, 64))
    assert few.activations_bytes < many.activations_bytes
    assert few.kv_cache_bytes < many.kv_cache_bytes
    assert few.weights_bytes == many.weights_bytes


def test_it_says_whether_it_fits(path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    for available, fits, words in ((1 << 40, True, "it fits"), (1 << 20, False, "it does not fit"), (None, None, "")):
        monkeypatch.setattr(module, "available_ram", lambda available=available: available)
        assert plan_ram(open_gguf(path), Settings(device="cpu")).fits is fits
        assert run(["inspect", str(path), "--device", "cpu"]) == 0
        assert words in capsys.readouterr().out


def test_the_available_memory_is_read_where_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "MemTotal:  2048 kB\nMemAvailable:   1024 kB\n")
    assert module.available_ram() == 1 << 20
    monkeypatch.setattr(Path, "read_text", lambda _: "")
    assert module.available_ram() is None


def test_settings_that_leave_no_room_are_an_error(path: Path, capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("ORCD_KV_CACHE_BYTES", "16")
    assert run(["inspect", str(path), "--device", "cpu"]) == 1
    one_error(capsys, "INSUFFICIENT_VRAM")
