"""What a built wheel holds."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.build import build_wheel

from orcd.cli.process_commands import WORKER_PACKAGES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as wheel:
        yield wheel


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    packages = ("orcd", "tasks", "worker", "kernels")
    files = {path for package in packages for path in (ROOT / package).rglob("*") if path.is_file()}
    training = ROOT / "tasks" / "demo" / "training"
    wanted = {path for path in files if path.suffix != ".pyc" and training not in path.parents}
    assert held == {str(path.relative_to(ROOT)) for path in wanted}


def test_the_base_install_is_the_client_and_the_command_line(wheel: zipfile.ZipFile) -> None:
    requirements = re.findall(r"^Requires-Dist: (.*)$", metadata(wheel), re.MULTILINE)
    base = {re.split(r"[^\w-]", line)[0].lower() for line in requirements if "extra ==" not in line}
    assert base == {"celery", "click", "hiredis", "msgspec", "redis", "rich", "tqdm"}


def test_the_packages_that_commands_look_for_are_those_of_the_extra_worker(wheel: zipfile.ZipFile) -> None:
    extra = re.findall(r"^Requires-Dist: ([\w-]+).*extra == 'worker'$", metadata(wheel), re.MULTILINE)
    assert sorted(name.replace("-", "_") for name in extra) == sorted(WORKER_PACKAGES)


def metadata(wheel: zipfile.ZipFile) -> str:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return wheel.read(name).decode()


def test_the_command_is_where_the_wheel_says(wheel: zipfile.ZipFile) -> None:
    [entry_points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "orcd = orcd.cli.main:main" in wheel.read(entry_points).decode()
