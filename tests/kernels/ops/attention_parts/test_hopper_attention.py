"""Attention of many query rows on Hopper: how it is launched. What it computes: `tests.kernels.ops.test_attention`."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.batch import LayerCache
from kernels.dry_step import dry_step
from kernels.ops.attention import cache_shape
from kernels.ops.attention_parts import hopper_attention
from kernels.ops.attention_parts.hopper_attention import cuts_of
from kernels.ops.attention_plan import HOPPER_GROUPS, attention_shape
from kernels.registry import CudaOps
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import A100, H100
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.attention_case import Case, Chunk, Heads, Runner


@pytest.mark.parametrize("head_dim", HOPPER_GROUPS)
def test_blocks_fit_the_shared_memory_and_have_the_rows_of_an_item(head_dim: int) -> None:
    for cut in cuts_of(head_dim):
        assert cut.blocks_per_sm * (cut.shared_bytes(head_dim) + 1024) <= H100.shared_bytes + 1024
        assert attention_shape(H100, head_dim).prefill_rows == cut.blocks_of_item * 64 * cut.groups


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128])
def test_blocks_of_the_portable_kernel_share_the_rows_of_an_item(head_dim: int) -> None:
    for gpu in (A100, H100):
        shape = attention_shape(gpu, head_dim)
        assert shape.prefill_rows == shape.prefill_parts * shape.block_rows
    assert attention_shape(A100, head_dim).prefill_parts == 1


def test_a_dry_run_of_any_step_notes_the_kernels_of_all() -> None:
    context = Context(H100)
    ops, attention = CudaOps(context), Attention(14, 2, 64, scale=1.0)
    halves = np.dtype(np.float16)
    cache = LayerCache(*(DeviceArray(0, cache_shape(100, 16, 2, 64), halves) for _ in "kv"))
    step = dry_step(8192, 4, 4, 128)
    arrays = (DeviceArray(0, (8192, heads * 64), halves) for heads in (18, 14))
    ops.paged_attention(next(arrays), cache, attention, step, ops.plan_attention(step, attention), out=next(arrays))
    noted = [defines for source, defines in context.variants.values() if source == "attention/attention_hopper"]
    assert sorted(map(str, noted)) == sorted(str(cut.defines(64)) for cut in cuts_of(64))


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64-0-*")
@pytest.mark.parametrize("up_to", [(0.0, 0.0), (1e9, 0.0), (1e9, 1e9)], ids=["large", "small", "split"])
@pytest.mark.parametrize("window", [0, 200])
@pytest.mark.parametrize("heads", [Heads(14, 2, 64), Heads(12, 12, 96), Heads(16, 4, 128)], ids=str)
def test_more_items_than_multiprocessors_have_the_bits_of_the_portable_kernel_in_every_layer(
    context: Context,
    upload: Upload,
    download: Download,
    heads: Heads,
    window: int,
    up_to: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not context.gpu.has_wgmma:
        pytest.skip("the kernel is for Hopper")
    monkeypatch.setattr(hopper_attention, "SMALL_UP_TO", up_to[0])
    monkeypatch.setattr(hopper_attention, "SPLIT_UP_TO", up_to[1])
    lengths = [1700, 900, 1300, 500, 2000, 31]
    runner = Runner(context, upload, download, Case(heads, lengths))
    chunks: list[Chunk] = [(row, length // 3, length - length // 3) for row, length in enumerate(lengths)]
    rows = sum(count for _, _, count in chunks) * heads.num_heads
    assert rows > 1.1 * context.gpu.num_sms * attention_shape(context.gpu, heads.head_dim).prefill_rows
    once, again = (runner.run(chunks, window=window, sinks=True, layers=layers) for layers in (1, 3))
    monkeypatch.setattr("kernels.ops.attention_plan.HOPPER_GROUPS", {})
    portable = runner.run(chunks, window=window, sinks=True)
    np.testing.assert_array_equal(once.view(np.uint16), portable.view(np.uint16))
    np.testing.assert_array_equal(again.view(np.uint16), portable.view(np.uint16))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "heads", [Heads(14, 2, 64), Heads(14, 2, 64, is_q8=True), Heads(3, 3, 96), Heads(4, 2, 256)], ids=str
)
def test_long_prompts_have_zeros_behind_them(
    context: Context, upload: Upload, download: Download, heads: Heads
) -> None:
    runner = Runner(context, upload, download, Case(heads, [300, 513]))
    runner.pads_sequences = False
    chunks: list[Chunk] = [(0, 100, 200), (1, 0, 513)]
    padded = runner.run(chunks, sinks=True, padding=45)
    runner.pads_sequences = True  # and so there are short ones
    among = runner.run(chunks, sinks=True, padding=1)
    runner.pads_sequences = False
    np.testing.assert_array_equal(padded[:713].view(np.uint16), among[:713].view(np.uint16))
    np.testing.assert_array_equal(padded[713:], 0)
