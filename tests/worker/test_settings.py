"""What a worker has of settings, and what each may be; how variables are read is tested with `orcd.settings`."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from orcd.errors import InvalidRequest
from orcd.settings import PREFIX, to_environment
from worker.settings import Settings, from_environment

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_nothing_set_gives_the_defaults():
    assert from_environment({}) == Settings()
    assert from_environment({"PATH": "/bin", "ORCD_MODEL": ""}) == Settings()


def test_variables_and_flags_become_fields():
    environment = {"ORCD_MODEL": "/m.gguf", "ORCD_DEVICE": "cuda:3", "ORCD_NAME": "a", "ORCD_LEASE_MS": "5"}
    assert from_environment(environment, name="b", lease_ms=None) == Settings(
        model="/m.gguf", device="cuda:3", name="b", lease_ms=5
    )


@pytest.mark.parametrize(("device", "max_sequences", "step_tokens"), [("cpu", 64, 512), ("cuda:1", 256, 8192)])
def test_how_much_a_step_takes_depends_on_the_device_unless_it_is_said(device, max_sequences, step_tokens):
    for settings in (Settings(device=device), from_environment({"ORCD_STEP_TOKENS": "0"}, device=device)):
        assert (settings.max_sequences, settings.step_tokens) == (max_sequences, step_tokens)
        assert to_environment(settings).keys() <= {"ORCD_DEVICE"}
    said = Settings(device=device, max_sequences=3, step_tokens=5)
    assert (said.max_sequences, said.step_tokens) == (3, 5)
    assert from_environment(to_environment(said)) == said


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ORCD_STEP_TOKENS": "-1"}, "ORCD_STEP_TOKENS"),
        ({"ORCD_LEASE_MS": "0"}, "ORCD_LEASE_MS"),
        ({"ORCD_JOB_TTL_S": "0"}, "ORCD_JOB_TTL_S"),
        ({"ORCD_VRAM_FRACTION": "0"}, "ORCD_VRAM_FRACTION"),
        ({"ORCD_VRAM_FRACTION": "1.1"}, "ORCD_VRAM_FRACTION"),
        ({"ORCD_VRAM_FRACTION": "nan"}, "ORCD_VRAM_FRACTION"),
        ({"ORCD_VRAM_BYTES": "8e9"}, "ORCD_VRAM_BYTES must be a whole number"),
        ({"ORCD_KV_CACHE_BYTES": "-1"}, "ORCD_KV_CACHE_BYTES"),
        ({"ORCD_KV_CACHE_BYTES": "9" * 20}, "ORCD_KV_CACHE_BYTES must be at most 9007199254740992"),
        ({"ORCD_METRICS_PORT": "99999"}, "ORCD_METRICS_PORT must be at most 65535"),
        ({"ORCD_LEASE_MS": "9" * 20}, "ORCD_LEASE_MS must be at most 2147483647"),
        ({"ORCD_ENGINE_STEP_TIMEOUT_S": "9" * 20}, "ORCD_ENGINE_STEP_TIMEOUT_S must be at most"),
        ({"ORCD_DEVICE": "gpu"}, "ORCD_DEVICE"),
        ({"ORCD_DEVICE": "cuda:x"}, "ORCD_DEVICE"),
        ({"ORCD_DEVICE": "cuda:" + "9" * 20}, "ORCD_DEVICE"),
        ({"ORCD_LOG_FORMAT": "xml"}, "ORCD_LOG_FORMAT"),
        ({"ORCD_KV_CACHE_TYPE": "q4"}, "ORCD_KV_CACHE_TYPE must be f16 or q8"),
        ({"ORCD_NAME": "caf\udce9"}, "ORCD_NAME must be valid UTF-8"),
        (
            {"ORCD_MODEL": "/models/caf\udce9.gguf"},
            "ORCD_NAME must be valid UTF-8, or, where it is not set, the name of",
        ),
    ],
)
def test_a_wrong_variable_is_named(environment: dict[str, str], named: str):
    with pytest.raises(InvalidRequest, match=named):
        from_environment(environment)


def test_a_child_process_gets_the_same_settings():
    settings = Settings(model="m", device="cpu", step_tokens=9, prefix_cache=False)
    environment = to_environment(settings)
    assert environment.keys() == {"ORCD_MODEL", "ORCD_DEVICE", "ORCD_STEP_TOKENS", "ORCD_PREFIX_CACHE"}
    assert from_environment(environment) == settings


def test_the_documentation_lists_every_variable_and_no_other():
    listed = set(re.findall(rf"`({PREFIX}[A-Z_]+)`", PAGE.read_text("utf-8")))
    assert listed == {PREFIX + field.name.upper() for field in fields(Settings)}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(model="/models/haiku.gguf"), "haiku"),
        (Settings(model="/models/haiku.gguf", name="poet"), "poet"),
        (Settings(model="/models/big-00001-of-00003.gguf"), "big"),
        (Settings(model="hf:org/repo/big-1.5b.gguf@v1.0#sha256=ab"), "big-1.5b"),
        (Settings(), ""),
    ],
)
def test_a_model_is_called_by_its_name_or_its_file(settings: Settings, name: str) -> None:
    assert settings.model_name == name


def test_what_a_client_s_settings_may_be_is_checked_for_a_worker_too() -> None:
    with pytest.raises(InvalidRequest, match="ORCD_KEY_PREFIX must be"):
        from_environment({"ORCD_KEY_PREFIX": "staging"})


def test_a_worker_has_room_for_messages_of_jobs_that_just_ended_unless_a_number_is_said():
    assert Settings(device="cuda:0").concurrency == 512
    assert Settings(max_sequences=1).concurrency == 2
    said = Settings(concurrency=7)
    assert said.concurrency == from_environment(to_environment(said)).concurrency == 7
