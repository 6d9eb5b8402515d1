"""kernels.kernel_variants: the list of all kernels."""

from __future__ import annotations

from kernels.kernel_variants import common_variants, variants


def test_no_variant_is_listed_twice() -> None:
    listed = [(source, *sorted(defines.items())) for source, defines in variants()]
    assert len(listed) == len(set(listed))


def test_what_depends_on_no_model_is_compiled_without_definitions() -> None:
    assert common_variants()
    assert all(not defines for _, defines in common_variants())
