"""Tests mirror the packages: ``tests/<folder>/test_<module>.py`` tests ``<folder>/<module>.py``.

A module with many tests has several files, ``test_<module>_<topic>.py``. ``__init__`` and ``__main__`` are tested by
``test_init.py`` and ``test_main.py``.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path, PurePath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("orcd", "tasks", "worker", "kernels")
OUTSIDE = PurePath("tasks/demo/training")  # makes the model that ships, which tests/tasks/demo tests; not in the wheel

WITHOUT_TESTS = {
    "kernels/errors.py": "exception classes; what they say is tested where they are raised",
    "kernels/ops/decode_layers/decode_layers_params.py": "structs, which compiling the kernels compares with CUDA's",
    "kernels/ops/decode_layers/decode_layers_step.py": "what `decode_layers` is given, which is tested",
    "kernels/ops/decode_layers/streamed_layers_params.py": "structs, which compiling the kernels compares with CUDA's",
    "kernels/ops/matmul_params.py": "structs, which compiling the kernels compares with CUDA's",
    "kernels/ops/attention_parts/attention_params.py": "the same",
    "kernels/ops/attention_parts/attention_plan_params.py": "the same",
    "orcd/batch/line.py": "types without methods",
    "orcd/monitoring/check.py": "types without methods",
    "orcd/batch/results/result_format.py": "a protocol, whose classes are tested",
    **{
        f"orcd/gateway/{name}.py": f"tested through the API, by tests/orcd/gateway/{test}.py"
        for name, test in {
            "api_error": "test_app",
            "endpoint": "test_app",
            "models": "test_app",
            "rate_limit": "test_app",
            "answers/delivery": "answers/test_generation",
            "answers/sse": "answers/test_generation",
            "batches/batch_task": "batches/test_batches",
            "batches/file_store": "batches/test_files",
            "batches/pages": "batches/test_files",
        }.items()
    },
    "tasks/dispatch/delivery.py": "types, which the claimer's tests use",
    "tasks/observe/observed_job.py": "a protocol, of which the tests of observers have an object",
    "worker/engine/token_constraint.py": "a protocol, of which the tests of engines have an object",
    "worker/errors.py": "only raises; tests/tasks/test_init.py tests it with all that has moved",
}
"""Modules that have nothing to test by themselves, and why."""

OF_MORE_THAN_A_MODULE = {
    "tests/orcd/gateway/test_openai.py": "clients of OpenAI's API against gateways and a worker",
    "tests/orcd/gateway/test_langchain.py": "LangChain's client against the gateway",
    "tests/orcd/gateway/test_litellm.py": "LiteLLM's client against the gateway",
    "tests/tasks/test_batch_files.py": "prompt files through the whole system",
    "tests/tasks/demo/test_model.py": "the model file that ships",
    "tests/tasks/test_device_faults.py": "workers whose device fails",
    "tests/tasks/test_families.py": "a model of every family through the whole system",
    "tests/tasks/test_privacy.py": "no prompt leaves the system by a log, a metric or an error",
    "tests/tasks/test_privacy_day.py": "no prompt and no key leaves the system in a day of mixed work",
    "tests/tasks/test_redis_acl.py": "the whole system under a Redis user with the least rights",
    "tests/tasks/test_redis_failover.py": "the whole system on a Redis that has a new master",
    "tests/tasks/test_redis_kinds.py": "the whole system on each kind of Redis",
    "tests/tasks/test_structured_output.py": "the whole system",
    "tests/tasks/test_system.py": "the whole system",
    "tests/tasks/test_tool_calls.py": "calls of tools through all but an engine",
    "tests/worker/commands/test_llama_cpp.py": "logits compared with llama.cpp's",
    "tests/worker/engine/test_equivalence.py": "what a request says does not depend on what runs with it",
    "tests/worker/engine/test_equivalence_prompts.py": "nor what is told of its prompt",
    "tests/worker/model/families/test_conformance.py": "every family's references",
    "tests/worker/model/families/test_conformance_gpu.py": "the same on a GPU",
    "tests/worker/model/families/test_routers.py": "the small mixtures' files, whose logits are compared",
    "tests/worker/model/test_formats.py": "every tensor type through whole models",
    "tests/worker/model/test_hostile.py": "damaged files through all that reads them",
}
"""Test files that belong to no single module, and what they test."""


def has_code(path: Path) -> bool:
    """Whether there is more in a file than a docstring."""
    return len(ast.parse(path.read_text()).body) > 1


def modules() -> list[PurePath]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = [path.relative_to(ROOT) for path in paths if path.name != "__init__.py" or has_code(path)]
    return [path for path in found if OUTSIDE not in path.parents]


def files_with_tests() -> list[PurePath]:
    """Those that are under a package's name; what is in ``tests/`` itself tests the project as a whole."""
    return [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / "tests" / package).rglob("test_*.py")]


def expected_test(module: PurePath) -> PurePath:
    return "tests" / module.with_name(f"test_{module.stem.strip('_')}.py")


def owners_of(test: PurePath, modules_of: dict[PurePath, list[PurePath]]) -> list[str]:
    """The modules that a file tests, of those whose tests are in its folder."""
    stems = {module: expected_test(module).stem for module in modules_of.get(test.parent, ())}
    return [
        module.as_posix() for module, stem in stems.items() if test.stem == stem or test.stem.startswith(f"{stem}_")
    ]


def test_each_module_has_its_test_file_or_a_reason_to_have_none() -> None:
    wrong = [
        f"{module}: {expected_test(module)} or a reason, not both"
        for module in modules()
        if (ROOT / expected_test(module)).exists() == (module.as_posix() in WITHOUT_TESTS)
    ]
    assert not wrong, "\n".join(wrong)


def test_each_test_file_belongs_to_a_module_or_is_listed_as_one_of_many() -> None:
    modules_of = defaultdict(list)
    for module in modules():
        modules_of[expected_test(module).parent].append(module)
    wrong = []
    for test in files_with_tests():
        owners = owners_of(test, modules_of)
        is_listed = test.as_posix() in OF_MORE_THAN_A_MODULE
        if bool(owners) == is_listed:
            wrong.append(f"{test} belongs to {owners or 'no module'} and is {'' if is_listed else 'not '}listed")
    assert not wrong, "\n".join(wrong)


def test_what_is_listed_exists() -> None:
    assert [path for path in (*WITHOUT_TESTS, *OF_MORE_THAN_A_MODULE) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("folder", ["bench", "models"])
def test_a_script_under_tests_is_tested_beside_itself(folder: str) -> None:
    for path in (ROOT / "tests" / folder).glob("test_*.py"):
        assert path.with_name(path.name.removeprefix("test_")).exists(), path.name
