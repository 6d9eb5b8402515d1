"""kernels.ops.layers.delta_net against its reference; a token's bits do not depend on the step that it comes in."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.batch import LayerState, Step
from kernels.ops.layers import delta_net
from kernels.ops.layers.delta_net import STATE_DIMS, gated_delta_net
from kernels.reference.delta_net import gated_delta_net as reference
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.parameters import DeltaNet, HeadOrder, RmsNorm
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.ops.layers.state_step import StateSteps, poisoned_state, ways
from tests.kernels.reference.recurrence import step_of
from tests.kernels.reference.test_delta_net import poisoned, random_net

LENGTHS = (1, 2, 17, 33, 90)


def on_device(net: DeltaNet[np.ndarray], upload: Upload) -> DeltaNet[DeviceArray]:
    return replace(
        net,
        taps=upload(net.taps),
        decay=upload(net.decay),
        time_bias=upload(net.time_bias),
        norm=RmsNorm(upload(net.norm.weight), net.norm.epsilon),
    )


@pytest.mark.gpu
@pytest.mark.sanitize("16-16-*", "128-128-*")
@pytest.mark.parametrize("order", ["tiled", "grouped"])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (32, 64), (64, 32), (64, 64), (128, 128)])
def test_rows_are_the_reference_s_however_they_are_cut_into_steps(
    context: Context,
    upload: Upload,
    empty: Empty,
    download: Download,
    monkeypatch: pytest.MonkeyPatch,
    key_dim: int,
    value_dim: int,
    order: HeadOrder,
) -> None:
    net = random_net(2, 6, key_dim, value_dim, order)
    device_net = on_device(net, upload)

    def op(rows: DeviceArray, step: Step[DeviceArray], state: LayerState[DeviceArray]) -> DeviceArray:
        out = empty((rows.shape[0], net.value_width), np.float16)
        gated_delta_net(context, rows, device_net, step, out_state=state, out=out)
        return out

    rng = np.random.default_rng(key_dim)
    sequences = [rng.normal(size=(length, net.projected_width)).astype(np.float16) for length in LENGTHS]
    shapes = (3, net.channels), (6, key_dim, value_dim)
    steps = StateSteps(op, poisoned_state(empty, 11, *shapes), upload, download)
    cuts = ways(LENGTHS)
    results = {name: steps.run(sequences, cut) for name, cut in cuts.items()}
    results["padded"] = steps.run(sequences, cuts["in pieces"], padding=3)
    in_place = StateSteps(op, poisoned_state(empty, 5, *shapes), upload, download, in_place=True)
    results["in place"] = in_place.run(sequences, cuts["in pieces"])
    for kernel in ("delta_net_rule", "delta_net_rule_step"):
        monkeypatch.setattr(delta_net, "rule_kernel", lambda *_, kernel=kernel: kernel)
        results[kernel] = steps.run(sequences, cuts["in pieces"])
    monkeypatch.setattr(delta_net, "input_kernel", lambda *_: ("delta_net_inputs_many", 8))
    for cut in cuts:
        results[f"{cut}, 8 inputs at once"] = steps.run(sequences, cuts[cut], padding=3)
    for number, sequence in enumerate(sequences):
        expected = np.empty((LENGTHS[number], net.value_width), np.float32)
        step = step_of([LENGTHS[number]], [0], [-1])
        reference(sequence.astype(np.float32), net, step, out_state=poisoned(net, 1), out=expected)
        np.testing.assert_allclose(results["alone"][number], expected, rtol=4e-3, atol=4e-3)
        for name, result in results.items():
            np.testing.assert_array_equal(result[number], results["alone"][number], err_msg=name)


def test_sizes_that_no_kernel_has_are_refused() -> None:
    net = random_net(2, 4, 24, 24)
    assert 24 not in STATE_DIMS
    projected, out = (
        DeviceArray(0, (1, width), np.dtype(np.float16)) for width in (net.projected_width, net.value_width)
    )
    with pytest.raises(AssertionError):
        gated_delta_net(None, projected, net, None, out_state=None, out=out)  # type: ignore[arg-type]
