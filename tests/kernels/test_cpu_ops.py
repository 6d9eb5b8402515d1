"""kernels.cpu_ops: the table keeps its protocol, and has nothing that CUDA has."""

from __future__ import annotations

import inspect

import pytest

from kernels.cpu_ops import CpuOps, ReferenceCpuOps
from tests.kernels.test_registry import OPS, parameters

CPU_OPS = {
    name: method for name, method in vars(CpuOps).items() if inspect.isfunction(method) and not name.startswith("_")
}


def test_the_protocol_and_the_references_have_the_same_names_and_none_of_an_op_that_cuda_has() -> None:
    assert CPU_OPS.keys() == vars(ReferenceCpuOps()).keys()
    assert not CPU_OPS.keys() & OPS.keys()


@pytest.mark.parametrize("name", CPU_OPS)
def test_an_op_is_called_what_its_reference_is_called_and_takes_the_same(name: str) -> None:
    reference = getattr(ReferenceCpuOps(), name)
    assert reference.__name__ == name
    assert parameters(reference) == parameters(CPU_OPS[name])
