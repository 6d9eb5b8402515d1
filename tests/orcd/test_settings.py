"""How ``ORCD_`` variables are read, for any settings, and what a client has of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from orcd.errors import InvalidRequest
from orcd.settings import (
    ClientSettings,
    check_whole_numbers,
    inherited_environment,
    read_environment,
    to_environment,
)


@dataclass(frozen=True, slots=True)
class SampleSettings(ClientSettings):
    """One of every type, under names of the table."""

    name: str = ""
    step_tokens: int = 0
    prefix_cache: bool = True
    vram_fraction: float = 0.9

    def check(self) -> None:
        check_whole_numbers(self, {"job_ttl_s"})

    def defaults(self) -> SampleSettings:
        return SampleSettings()


def test_nothing_set_gives_the_defaults() -> None:
    assert read_environment(ClientSettings, {}) == ClientSettings()
    assert read_environment(ClientSettings, {"PATH": "/bin", "ORCD_REDIS_URL": ""}) == ClientSettings()


def test_without_a_mapping_it_is_the_process_s_own_environment_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCD_JOB_TTL_S", "60")
    assert read_environment(ClientSettings).job_ttl_s == 60


def test_every_kind_of_value_is_read() -> None:
    settings = read_environment(
        SampleSettings,
        {
            "ORCD_NAME": "poet",
            "ORCD_STEP_TOKENS": "7",
            "ORCD_PREFIX_CACHE": "No",
            "ORCD_VRAM_FRACTION": "0.5",
            "ORCD_JOB_TTL_S": "60",
        },
    )
    assert settings == SampleSettings(
        name="poet", step_tokens=7, prefix_cache=False, vram_fraction=0.5, job_ttl_s=60
    )  # fmt: skip


def test_flags_win_over_variables_and_absent_flags_do_not() -> None:
    environment = {"ORCD_REDIS_URL": "redis://variable/0", "ORCD_JOB_TTL_S": "5"}
    settings = read_environment(ClientSettings, environment, redis_url="redis://flag/0", job_ttl_s=None)
    assert settings == ClientSettings(redis_url="redis://flag/0", job_ttl_s=5)


def test_a_client_passes_over_the_variables_of_a_worker_on_the_same_machine() -> None:
    assert read_environment(ClientSettings, {"ORCD_DEVICE": "cuda:0", "ORCD_STEP_TOKENS": "no number"}) == (
        ClientSettings()
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ORCD_STEP_TOKEN": "7"}, r"unknown environment variable ORCD_STEP_TOKEN; did you mean ORCD_STEP_TOKENS\?"),
        (
            {"ORCD_REDIS": "redis://127.0.0.1"},
            r"unknown environment variable ORCD_REDIS; did you mean ORCD_REDIS_URL\?",
        ),
        ({"ORCD_XYZZY": "1"}, "unknown environment variable ORCD_XYZZY; docs/settings.md lists all"),
        ({"ORCD_STEP_TOKENS": "seven"}, "ORCD_STEP_TOKENS must be a whole number"),
        ({"ORCD_STEP_TOKENS": "8e9"}, "ORCD_STEP_TOKENS must be a whole number"),
        ({"ORCD_STEP_TOKENS": "-1"}, "ORCD_STEP_TOKENS must be at least 0"),
        ({"ORCD_JOB_TTL_S": "0"}, "ORCD_JOB_TTL_S must be at least 1"),
        ({"ORCD_JOB_TTL_S": "99999999999999"}, "ORCD_JOB_TTL_S must be at most 2147483647"),
        ({"ORCD_VRAM_FRACTION": "half"}, "ORCD_VRAM_FRACTION must be a number"),
        ({"ORCD_PREFIX_CACHE": "maybe"}, "ORCD_PREFIX_CACHE must be true or false"),
    ],
)
def test_a_wrong_variable_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_environment(SampleSettings, environment)


KUBERNETES = {
    "ORCD_SERVICE_HOST": "10.0.0.7",
    "ORCD_SERVICE_PORT": "80",
    "ORCD_SERVICE_PORT_HTTP": "80",
    "ORCD_PORT": "tcp://10.0.0.7:80",
    "ORCD_PORT_80_TCP": "tcp://10.0.0.7:80",
    "ORCD_PORT_80_TCP_PROTO": "tcp",
    "ORCD_PORT_80_TCP_PORT": "80",
    "ORCD_PORT_80_TCP_ADDR": "10.0.0.7",
}


@pytest.mark.parametrize("service", ["ORCD", "ORCD_REDIS", "ORCD_STEP_TOKENS", "ORCD_METRICS"])
def test_variables_that_kubernetes_sets_for_a_service_of_that_name_are_passed_over(service: str) -> None:
    """F21. A service ``orcd-metrics`` even has ``ORCD_METRICS_PORT``, which is a setting, too."""
    environment = {service + name.removeprefix("ORCD"): text for name, text in KUBERNETES.items()}
    assert read_environment(SampleSettings, environment) == SampleSettings()


def test_a_port_that_is_set_by_a_person_is_still_checked() -> None:
    with pytest.raises(InvalidRequest, match="unknown environment variable ORCD_REDIS_PORT"):
        read_environment(SampleSettings, {"ORCD_REDIS_PORT": "80"})


def test_a_client_s_own_settings_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="ORCD_JOB_TTL_S must be at least 1"):
        read_environment(ClientSettings, {"ORCD_JOB_TTL_S": "0"})


def test_what_is_handed_to_a_child_process_reads_back_as_the_same_settings() -> None:
    settings = SampleSettings(name="poet", step_tokens=9, prefix_cache=False)
    environment = to_environment(settings)
    assert environment.keys() == {"ORCD_NAME", "ORCD_STEP_TOKENS", "ORCD_PREFIX_CACHE"}
    assert read_environment(SampleSettings, environment) == settings


@pytest.mark.parametrize("prefix", ["", "staging:", "a.b-c_", ":"])
def test_a_key_prefix_ends_with_a_separator(prefix: str):
    assert read_environment(ClientSettings, {"ORCD_KEY_PREFIX": prefix}).key_prefix == prefix


@pytest.mark.parametrize("prefix", ["staging", "{a}:", "a b:", "a':", "ä:", "a:\n", "x" * 64 + ":"])
def test_another_key_prefix_is_refused(prefix: str):
    with pytest.raises(InvalidRequest, match=r"ORCD_KEY_PREFIX must be of A-Z a-z 0-9 : _ . - and end with"):
        read_environment(ClientSettings, {"ORCD_KEY_PREFIX": prefix})


def test_settings_are_shown_without_the_password():
    assert "secret" not in repr(ClientSettings(redis_url="redis://:secret@h"))


def test_children_inherit_everything_but_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ORCD_REDIS_URL", "redis://:secret@h")
    monkeypatch.setenv("SOMETHING", "else")
    inherited = inherited_environment()
    assert inherited["SOMETHING"] == "else"
    assert not any(name.startswith("ORCD_") for name in inherited)
