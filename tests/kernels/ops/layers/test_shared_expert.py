"""kernels.ops.layers.shared_expert against float64, and the same bits in every batch."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.layers.shared_expert import add_shared_expert
from kernels.weights.parameters import SharedWeights
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.random_weights import random_weight, values_of
from tests.kernels.ops.test_matmul import load, relative

pytestmark = pytest.mark.gpu


@pytest.mark.sanitize("Q4_K")
@pytest.mark.parametrize("names", ["Q4_K", "Q8_0", "Q4_K/Q5_K"])
def test_what_it_makes_is_gated_and_added_as_in_float64(
    device: CudaDevice, upload: Upload, download: Download, names: str
) -> None:
    rng = np.random.default_rng(5)
    width, inner = 512, 256
    first, last = names.split("/")[0], names.split("/")[-1]
    gate, up = random_weight(first, (inner, width), rng), random_weight(last, (inner, width), rng)
    down = random_weight(first, (width, inner), rng)
    output_gate = rng.normal(0, 0.1, width).astype(np.float32)
    shared = load(device, lambda store: store._shared(SharedWeights(gate, up, down, output_gate)))
    normed = rng.normal(size=(300, width)).astype(np.float16)
    x = normed.astype(np.float64)
    g, u = x @ values_of(gate).T, x @ values_of(up).T
    share = 1 / (1 + np.exp(-(x @ output_gate)))
    expected = (g / (1 + np.exp(-g)) * u) @ values_of(down).T * share[:, None]
    found = {}
    for num_tokens in (1, 2, 4, 5, 64, 300):
        out = upload(np.zeros((num_tokens, width), np.float32))
        add_shared_expert(device.context, upload(normed[:num_tokens]), shared, out=out)
        found[num_tokens] = download(out)
    assert relative(found[300], expected) < 3e-3
    assert [n for n in found if not np.array_equal(found[n], found[300][:n])] == []
