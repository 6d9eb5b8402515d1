"""kernels.reference.embedding."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.reference.embedding import embed, embed_positions
from tests.kernels.reference.test_matmul import make_matrix


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0"])
def test_rows_come_out_of_the_table_by_id_and_by_position(name: str) -> None:
    rng = np.random.default_rng(0)
    table, positions = make_matrix(rng.normal(size=(20, 32)), name), make_matrix(rng.normal(size=(9, 32)), "F32")
    ids, places = np.array([3, 19, 3], np.int32), np.array([0, 8, 1], np.int32)
    expanded = table.rows(slice(None))
    out = np.empty((3, 32), np.float32)
    embed(ids, table, out=out)
    np.testing.assert_array_equal(out, expanded[ids])
    embed(ids, table, scale=12.5, out=out)
    np.testing.assert_array_equal(out, expanded[ids] * np.float32(12.5))
    embed_positions(ids, table, places, positions, out=out)
    np.testing.assert_array_equal(out, expanded[ids] + positions.rows(places))
