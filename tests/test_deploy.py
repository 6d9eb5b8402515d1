"""What is in deploy/ and the Dockerfile is valid, names settings and paths that exist, and shows real figures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orcd.client import Client
from orcd.errors import BY_CODE
from orcd.settings import NAMES
from tasks.local.redis_server import RedisServer, free_port
from tests.conftest import emptied, wait_until
from tests.tasks.worker_process import WorkerProcess

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "orcd.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
PROBES = {"/health/live", "/health/ready"}


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_raised_when_they_should_be() -> None:
    promtool = tool("promtool")
    check(promtool, "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    check(promtool, "test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))


def test_the_image_is_made_as_images_should_be() -> None:
    check(tool("hadolint"), "--failure-threshold", "warning", str(ROOT / "Dockerfile"))


@pytest.mark.parametrize("name", ["worker", "gateway"])
def test_a_manifest_is_one_of_kubernetes(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is of the extra dev")
    for document in yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text()):
        validator.validate(document, validator.latest_version(), strict=True)


def test_the_scaled_object_has_what_keda_asks_for() -> None:
    """By hand, after KEDA's CRD: its schema is in no package."""
    [document] = yaml.safe_load_all((DEPLOY / "kubernetes" / "scaledobject.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = document["spec"]
    assert spec.keys() == {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "triggers",
    }  # fmt: skip
    deployments = [each for path in MANIFESTS for each in yaml.safe_load_all(path.read_text())]
    assert spec["scaleTargetRef"]["name"] in {each["metadata"]["name"] for each in deployments}
    assert all(isinstance(spec[name], int) for name in ("minReplicaCount", "maxReplicaCount", "pollingInterval"))
    [trigger] = spec["triggers"]
    assert trigger["type"] == "prometheus"
    assert {"serverAddress", "query", "threshold"} <= trigger["metadata"].keys()
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes text only"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_one_of_systemd(path: Path, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    unit = tmp_path / path.name.replace("@", "@cpu")
    unit.write_text(path.read_text().replace("/opt/orcd/bin/orcd", "/bin/true"))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert path.name.partition("@")[0] not in done.stderr, done.stderr


def test_every_variable_and_probe_exists() -> None:
    texts = {path: path.read_text() for path in (*MANIFESTS, *UNITS)}
    for path, text in texts.items():
        assert {name.lower() for name in re.findall(r"ORCD_([A-Z_]+)", text)} <= NAMES, path
    paths = set(re.findall(r"path: (/\S+?)[,}]", texts[DEPLOY / "kubernetes" / "worker.yaml"]))
    assert paths >= PROBES


def test_alerts_name_metrics_that_the_documentation_has() -> None:
    listed = set(re.findall(r"\borcd_[a-z0-9_]+", (ROOT / "docs" / "metrics.md").read_text()))
    texts = [*QUERIES, (DEPLOY / "prometheus" / "alerts.yml").read_text(), MANIFESTS[1].read_text()]
    for name in re.findall(r"\borcd_[a-z0-9_]+", "\n".join(texts)):
        assert name.removesuffix("_bucket") in listed, name


def test_the_table_of_error_codes_says_which_may_succeed_later() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \|[^|]*\| (yes|no) \|", page, re.MULTILINE)
    assert dict(rows) == {code: "yes" if kind.retriable else "no" for code, kind in BY_CODE.items()}


@pytest.fixture(scope="module")
def prometheus(
    shared_redis: RedisServer, shallow_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a Prometheus that scrapes a worker at another address; some of its jobs ended well, some did not."""
    program = tool("prometheus")
    folder, url = tmp_path_factory.mktemp("prometheus"), emptied(shared_redis)
    metrics_port, port = free_port(), free_port()
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    del config["rule_files"], config["scrape_configs"][1:], config["scrape_configs"][0]["dns_sd_configs"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.2:{metrics_port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    variables = {"ORCD_METRICS_PORT": str(metrics_port), "ORCD_METRICS_HOST": "0.0.0.0"}  # noqa: S104
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (
        WorkerProcess(url, shallow_model, folder, **variables),
        (folder / "prometheus.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
        Client(url) as client,
    ):
        wait_until(lambda: value(f"http://127.0.0.1:{port}", "orcd_ready"), timeout_s=60)
        for _ in range(6):
            client.result(client.submit(prompt="once upon a time", max_tokens=8), timeout=60)
            client.result(client.submit(prompt="x" * 20_000), timeout=60)
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def value(url: str, query: str) -> list[Any]:
    """What a query finds."""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?query={urllib.parse.quote(query)}", timeout=60) as response:
            found: list[Any] = json.loads(response.read())["data"]["result"]
    except OSError:
        return []
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_the_dashboard_finds_figures(prometheus: str, query: str) -> None:
    asked = query.replace("$__rate_interval", "30s")
    wait_until(lambda: value(prometheus, asked), timeout_s=60)
    figures = [float(each["value"][1]) for each in value(prometheus, asked)]
    assert all(figure >= 0 for figure in figures), "no NaN"
