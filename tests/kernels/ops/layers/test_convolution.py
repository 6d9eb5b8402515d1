"""kernels.ops.layers.convolution against its reference; a row's bits do not depend on its step."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.batch import LayerState, Step
from kernels.ops.layers.convolution import short_convolution
from kernels.reference.convolution import short_convolution as reference
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.ops.layers.state_step import StateSteps, poisoned_state, ways
from tests.kernels.reference.recurrence import poisoned_state as poisoned_host_state
from tests.kernels.reference.recurrence import step_of

LENGTHS = (1, 2, 3, 19, 40)


@pytest.mark.gpu
@pytest.mark.sanitize("32-3", "520-4")
@pytest.mark.parametrize("num_taps", [1, 3, 4, 7])
@pytest.mark.parametrize("channels", [32, 520, 2048])
def test_rows_are_the_reference_s_however_they_are_cut_into_steps(
    context: Context, upload: Upload, empty: Empty, download: Download, channels: int, num_taps: int
) -> None:
    rng = np.random.default_rng(channels)
    taps = rng.normal(size=(num_taps, channels)).astype(np.float32)
    on_device = upload(taps)

    def op(rows: DeviceArray, step: Step[DeviceArray], state: LayerState[DeviceArray]) -> DeviceArray:
        out = empty((rows.shape[0], channels), np.float16)
        short_convolution(context, rows, on_device, step, out_state=state, out=out)
        return out

    sequences = [rng.normal(size=(length, 3 * channels)).astype(np.float16) for length in LENGTHS]
    shape = (num_taps - 1, channels)
    steps = StateSteps(op, poisoned_state(empty, 11, shape, (0,)), upload, download)
    cuts = ways(LENGTHS)
    results = {name: steps.run(sequences, cut) for name, cut in cuts.items()}
    results["padded"] = steps.run(sequences, cuts["in pieces"], padding=3)
    in_place = StateSteps(op, poisoned_state(empty, 5, shape, (0,)), upload, download, in_place=True)
    results["in place"] = in_place.run(sequences, cuts["in pieces"])
    for number, sequence in enumerate(sequences):
        expected = np.empty((LENGTHS[number], channels), np.float32)
        state = poisoned_host_state(1, shape, (0, 0, 0))
        reference(
            sequence.astype(np.float32), taps, step_of([LENGTHS[number]], [0], [-1]), out_state=state, out=expected
        )
        np.testing.assert_allclose(results["alone"][number], expected, rtol=2e-3, atol=2e-3)
        for name, result in results.items():
            np.testing.assert_array_equal(result[number], results["alone"][number], err_msg=name)


def test_a_projection_of_another_width_is_refused() -> None:
    with pytest.raises(AssertionError):
        arrays = [DeviceArray(0, (3, width), np.dtype(np.float16)) for width in (64, 32)]
        taps = DeviceArray(0, (3, 32), np.dtype(np.float32))
        short_convolution(None, arrays[0], taps, None, out_state=None, out=arrays[1])  # type: ignore[arg-type]
