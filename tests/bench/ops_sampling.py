"""Time of a draw by rows, vocabulary and filters: ``python -m tests.bench.ops_sampling``.

Prints microseconds (median of replayed graphs of 20 draws) and what it would be of the GPU's bandwidth to read the
logits once in that time; up to about 50 MB of logits they are in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from kernels.batch import ANY_ID, GREEDY_ROW, SAMPLING_ROW, SamplingParams, encode_only_id
from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from kernels.logit_edits import EditResetList, EditResets, allocate_edits, count_tokens
from kernels.ops.sampling import mask_logits, reset_edits, sample, top_log_probabilities
from kernels.runtime.memory import MemoryPlan
from tests.bench.ops_attention import _time_us

GIB = 1 << 30
BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12}  # bytes per second, of the data sheets
FILTERS: dict[str, tuple[float, int, float, float]] = {  # temperature, top-k, top-p, min-p
    "greedy": (0, 0, 1, 0),
    "plain": (1, 0, 1, 0),
    "top-k 50": (0.8, 50, 1, 0),
    "top-p 0.95": (0.8, 0, 0.95, 0),
    "top-k, top-p, min-p": (0.8, 50, 0.95, 0.05),
}


def measure(device: CudaDevice, num_rows: int, vocab_size: int, bandwidth: float) -> None:
    device.weights.reset()
    context, upload = device.context, partial(device.upload, device.weights)
    rng = np.random.default_rng(0)
    logits = upload(rng.standard_normal((num_rows, vocab_size), np.float32) * np.float32(3))
    positions = upload(np.arange(num_rows, dtype=np.int64))
    ids = device.weights.allocate((num_rows,), np.int32)

    def show(name: str, operation: Callable[[], object]) -> None:
        def bounded() -> None:
            context.begin_step()
            operation()

        time_us = _time_us(device, bounded)
        share = logits.nbytes / time_us * 1e6 / bandwidth
        print(f"{num_rows:5} {vocab_size:8} {name:20} {time_us:9.2f} us {share:7.1%}", flush=True)

    for name, options in FILTERS.items():
        rows = np.frombuffer(GREEDY_ROW * num_rows, SAMPLING_ROW).copy()
        rows["key"] = range(num_rows)
        for field, value in zip(("temperature", "top_k", "top_p", "min_p"), options, strict=True):
            rows[field] = value
        show(name, partial(sample, context, logits, SamplingParams(upload(rows), positions), out_ids=ids))
    masks = upload(rng.integers(0, 1 << 32, (num_rows, -(-vocab_size // 32)), dtype=np.uint32))
    own, few = np.arange(num_rows, dtype=np.int32), np.full(num_rows, ANY_ID, np.int32)
    few[::20] = 0
    for name, numbers in {
        "half of each masked": own,
        "one in 20 masked": few,
        "one id left": encode_only_id(own),
    }.items():
        show(name, partial(mask_logits, context, logits, upload(numbers), masks, out=logits))
    top = {
        "out_logprobs": device.weights.allocate((num_rows,), np.float32),
        "out_top_ids": device.weights.allocate((num_rows, 20), np.int32),
        "out_top_logprobs": device.weights.allocate((num_rows, 20), np.float32),
    }
    for num_top in (0, 5, 20):
        rows["logprobs"] = num_top
        params = SamplingParams(upload(rows), positions)
        show(f"{num_top} log probabilities", partial(top_log_probabilities, context, logits, ids, params, **top))
    edits = allocate_edits(device.weights, num_rows, vocab_size, max_biases=8)
    resets = EditResetList()
    for row in range(num_rows):
        resets.put(row, count_tokens(rng.integers(0, vocab_size, 400).tolist(), []), {}, ())
    arrays = {name: upload(getattr(resets.arrays(), name)) for name in EditResets.__struct_fields__}
    show("begin edits", partial(reset_edits, context, edits, EditResets(**arrays)))
    rows = np.frombuffer(GREEDY_ROW * num_rows, SAMPLING_ROW).copy()
    rows["edit_row"], rows["repetition_penalty"] = range(num_rows), 1.0
    params = SamplingParams(upload(rows), positions, edits)
    show("greedy, penalties", partial(sample, context, logits, params, out_ids=ids))


def main() -> None:
    device = open_device("cuda:0")
    assert isinstance(device, CudaDevice)
    device.allocate(MemoryPlan(weights=GIB, kv_cache=0, scratch=GIB, step_buffers=0, graphs=0, cuda_context=0))
    bandwidth = next((value for name, value in BANDWIDTHS.items() if name in device.description), 1e12)
    print(device.description)
    for num_rows in (1, 64, 256):
        for vocab_size in (151936, 201088):
            measure(device, num_rows, vocab_size, bandwidth)


if __name__ == "__main__":
    main()
