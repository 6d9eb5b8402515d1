"""compose.yaml, Dockerfile and .env.example are valid and say what docs/deployment.md promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orcd.gateway import server
from orcd.gateway.batches import batch_runner
from worker import settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "compose.yaml").read_text()
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?P<rule>:[?-][^}]*)?\}")
SERVICE_KEYS = {"image", "build", "command", "environment", "volumes", "ports", "healthcheck", "restart", "deploy",
                "init", "depends_on", "cap_drop", "security_opt", "stop_grace_period", "read_only",
                "tmpfs"}  # fmt: skip
OURS = ("worker", "gateway", "flower")


def interpolated() -> dict[str, Any]:
    """The file as Compose reads it when only the variables without a default are set, each to its own name."""

    def value(match: re.Match[str]) -> str:
        rule = match["rule"] or ":?"
        return rule.removeprefix(":-") if rule.startswith(":-") else match["name"].lower()

    text = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    document: dict[str, Any] = yaml.safe_load(VARIABLE.sub(value, text))
    return document


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = interpolated()["services"]
    return services


def test_the_document_has_all_services_and_only_keys_that_compose_knows(
    services: dict[str, dict[str, Any]],
) -> None:
    assert set(interpolated()) == {"name", "services", "volumes"}
    assert set(services) == {"redis", *OURS, "prometheus", "grafana"}
    for service in services.values():
        assert service.keys() <= SERVICE_KEYS
        assert "image" in service or "build" in service
        assert service["restart"] == "unless-stopped"


def test_every_volume_and_dependency_exists(services: dict[str, dict[str, Any]]) -> None:
    mounts = [volume for service in services.values() for volume in service.get("volumes", ())]
    sources = {mount.split(":")[0] if isinstance(mount, str) else mount["source"] for mount in mounts}
    files = {source for source in sources if source.startswith("./")}
    assert sources - files - {"model_file"} == set(interpolated()["volumes"])
    assert all((ROOT / file).exists() for file in files)
    for service in services.values():
        for name in service.get("depends_on", {}):
            assert name in services
    for name in OURS:
        assert services[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "healthcheck" in services["redis"]


def test_every_variable_without_a_default_is_required_and_listed_in_the_example() -> None:
    listed = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    required = {match["name"] for match in VARIABLE.finditer(TEXT) if (match["rule"] or ":?").startswith(":?")}
    assert required == {
        "REDIS_PASSWORD", "FLOWER_PASSWORD", "GRAFANA_PASSWORD", "API_KEY", "MODEL_FILE", "MODEL_NAME",
    }  # fmt: skip
    assert required <= listed
    assert listed <= {match["name"] for match in VARIABLE.finditer(TEXT)}


def test_redis_is_durable_never_evicts_and_asks_for_a_password(services: dict[str, dict[str, Any]]) -> None:
    command = services["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--requirepass"] == "redis_password"


def test_the_worker_gets_one_nvidia_gpu_and_a_read_only_model(services: dict[str, dict[str, Any]]) -> None:
    worker = services["worker"]
    [device] = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    [model, cache] = worker["volumes"]
    assert model["read_only"] is True
    assert (cache["source"], cache["target"]) == ("kernel-cache", "/cache")
    assert model["target"] == worker["environment"]["ORCD_MODEL"]


def test_worker_and_flower_get_settings_that_exist(services: dict[str, dict[str, Any]]) -> None:
    for name in OURS:
        environment = {key: value for key, value in services[name]["environment"].items() if key.startswith("ORCD_")}
        assert settings.from_environment(environment).redis_url == "redis://:redis_password@redis:6379/0"


def test_flower_is_behind_a_password_and_read_only(services: dict[str, dict[str, Any]]) -> None:
    import flower.options
    from tornado.options import options

    environment = services["flower"]["environment"]
    assert environment["FLOWER_BASIC_AUTH"] == "orcd:flower_password"
    assert environment["FLOWER_READ_ONLY"] == "true"
    assert environment["FLOWER_UNAUTHENTICATED_API"] == "false"
    assert {"basic_auth", "read_only"} <= set(options.as_dict()), flower.options


def test_our_processes_may_write_to_volumes_and_tmp_only_and_gain_no_rights(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in OURS:
        service = services[name]
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]  # noqa: S108
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_each_of_our_processes_has_the_time_that_it_needs_to_stop(services: dict[str, dict[str, Any]]) -> None:
    [gateway, *_] = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "gateway.yaml").read_text())
    least_s = {"worker": settings.Settings().drain_timeout_s + 5, "gateway": server.STOP_S + batch_runner.STOP_S}
    for name, seconds in least_s.items():
        assert int(services[name].get("stop_grace_period", "10s").removesuffix("s")) > seconds
    assert gateway["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30) > least_s["gateway"]


def test_nothing_is_published_beyond_this_machine(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_image_runs_as_an_ordinary_user_and_copies_only_what_exists() -> None:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["orcd"]
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
    copies = [line for line in lines if line.startswith("COPY ") and "--from=" not in line]
    copied = [name for line in copies for name in line.split()[1:-1]]
    assert {"orcd", "tasks", "worker", "kernels", "pyproject.toml", "README.md", "LICENSE"} == set(copied)
    assert all((ROOT / name).exists() for name in copied)
