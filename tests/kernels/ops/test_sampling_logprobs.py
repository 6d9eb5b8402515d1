"""Log probabilities of kernels.ops.sampling against their NumPy reference: the same ids, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest

import kernels.reference.sampling as reference
from kernels.batch import SamplingParams
from kernels.ops import sampling
from kernels.runtime.launcher import Context
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.ops.test_sampling import greedy_rows, make_rows


@pytest.mark.gpu
@pytest.mark.sanitize("5-640-*")
@pytest.mark.parametrize("num_top", [0, 1, 20])
@pytest.mark.parametrize(
    ("num_rows", "vocab_size"),
    [(1, 5), (5, 640), (4, 4096), (4, 8191), (3, 151936), (64, 50257), (2, 262144), (2, 262208), (1, 520192)],
)
def test_log_probabilities(
    context: Context, upload: Upload, download: Download, empty: Empty, num_rows: int, vocab_size: int, num_top: int
) -> None:
    rng = np.random.default_rng()
    logits = make_rows(rng, num_rows, vocab_size)
    logits[np.abs(logits) > 1e30] = -np.inf
    logits = np.nan_to_num(logits, nan=0, posinf=3, neginf=-np.inf)
    ids = rng.integers(0, vocab_size, num_rows).astype(np.int32)
    ids[~np.isfinite(logits.max(axis=1))] = -1
    ids[2::5] = -1
    rows = greedy_rows(num_rows)
    rows["logprobs"] = num_top - np.arange(num_rows) % (num_top + 2)  # down to -1
    shapes = {"out_logprobs": (num_rows,), "out_top_ids": (num_rows, num_top), "out_top_logprobs": (num_rows, num_top)}
    dtypes = {"out_logprobs": np.float32, "out_top_ids": np.int32, "out_top_logprobs": np.float32}
    expected = {name: np.empty(shape, dtypes[name]) for name, shape in shapes.items()}
    positions = np.zeros(num_rows, np.int64)
    reference.top_log_probabilities(logits, ids, SamplingParams(rows, positions), **expected)

    def compute(which: slice) -> dict[str, np.ndarray]:
        count = ids[which].size
        out = {name: empty((count, *shape[1:]), dtypes[name]) for name, shape in shapes.items()}
        params = SamplingParams(upload(rows[which]), upload(positions[which]))
        sampling.top_log_probabilities(context, upload(logits[which]), upload(ids[which]), params, **out)
        return {name: download(array) for name, array in out.items()}

    results = compute(slice(None))
    np.testing.assert_array_equal(results["out_top_ids"], expected["out_top_ids"])
    for name in ("out_logprobs", "out_top_logprobs"):
        np.testing.assert_allclose(results[name], expected[name], atol=2e-6, rtol=2e-7)
    alone = compute(slice(0, 1))
    for name, values in results.items():
        assert alone[name].tobytes() == values[:1].tobytes()
