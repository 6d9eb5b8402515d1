"""kernels.ops.attention_plan: a step's work is shared out whole, in the memory that its shapes allow."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from kernels.batch import Step
from kernels.dry_step import dry_step
from kernels.ops import attention_plan
from kernels.ops.attention_parts.attention_plan_params import Item, PlanCounts
from kernels.ops.attention_plan import (
    DECODE_ROWS,
    PARTIAL_BYTES,
    PREFILL_CLASSES,
    SHORT_ROWS,
    TILE_KEYS,
    AttentionPlan,
    attention_shape,
    plan_attention,
    query_bytes,
    tile_bytes,
)
from kernels.ops.rope import HEAD_DIMS
from kernels.runtime.compiler import SOURCE_DIRECTORY, read_source
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import A100, H100, GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention
from tests.kernels.conftest import Download, Upload

GPUS = {"H100": H100, "A100": A100}
SPLIT_TOKENS = 4 * TILE_KEYS
SHARED_BYTES = 99 * 1024  # of a block, on every GPU since compute capability 8.0


def dry_plan(
    num_tokens: int, num_sequences: int, attention: Attention[DeviceArray], max_blocks: int = 8
) -> AttentionPlan:
    return plan_attention(Context(H100), dry_step(num_tokens, num_sequences, num_sequences, max_blocks), attention)


@pytest.mark.parametrize("name", ["TILE_KEYS", "DECODE_ROWS", "PREFILL_WARPS"])
def test_the_kernels_are_cut_as_the_host_takes_it(name: str) -> None:
    source = read_source(SOURCE_DIRECTORY / "attention" / "attention.cu")
    found = re.findall(rf"constexpr int {name} = (\d+);", source)
    assert found == [str(getattr(attention_plan, name))]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_decode_block_fits_the_shared_memory_of_every_gpu(gpu: GpuSpec, head_dim: int) -> None:
    assert attention_shape(gpu, head_dim).decode_bytes(head_dim, 2) <= SHARED_BYTES


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("element_bytes", "scale_bytes"), [(2, 0), (1, 2)])
def test_rows_of_a_tile_lie_an_odd_number_of_16_bytes_apart(
    head_dim: int, element_bytes: int, scale_bytes: int
) -> None:
    """So that loads of a column of them, 16 bytes each, meet no bank of shared memory twice."""
    assert query_bytes(head_dim) % 32 == 16
    row_bytes = tile_bytes(head_dim, element_bytes) // TILE_KEYS - scale_bytes
    assert row_bytes % 32 == 16
    assert head_dim * element_bytes <= row_bytes <= head_dim * element_bytes + 16


@pytest.mark.parametrize(("num_sequences", "blocks_per_sm"), [(1, 1), (2, 2), (5, 2)])
def test_few_sequences_are_divided_until_every_sm_has_work(num_sequences: int, blocks_per_sm: int) -> None:
    attention = Attention(8, 2, 64, scale=1.0)
    plan = dry_plan(num_sequences, num_sequences, attention)
    assert plan.decode_items.shape[0] * attention.num_kv_heads == blocks_per_sm * H100.num_sms


def test_a_decode_step_has_no_prefill_work_and_shares_out_with_one_launch() -> None:
    context = Context(H100)
    plan = plan_attention(context, dry_step(64, 64, 64, 8), Attention(14, 2, 64, scale=1.0))
    assert plan.prefill_items.size == 0
    assert (context.num_launches, context.last_enqueued) == (1, "attention_plan")


@pytest.mark.parametrize("attention", [Attention(14, 2, 64, scale=1.0), Attention(40, 1, 128, scale=1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_there_is_room_for_the_items_of_any_chunks(attention: Attention[DeviceArray], seed: int) -> None:
    group = attention.num_heads // attention.num_kv_heads
    prefill_rows = attention_shape(H100, attention.head_dim).prefill_rows
    rng = np.random.default_rng(seed)
    counts = rng.choice([1, 2, 5, 16, 65, 700], rng.integers(1, 20)) + (rng.random() < 0.5)
    rows = counts * group
    is_decode = (counts == 1) | (rows <= SHORT_ROWS) | (counts.sum() == counts.size)
    plan = dry_plan(int(counts.sum()), counts.size, attention)
    assert (-(-rows[is_decode] // DECODE_ROWS)).sum() <= plan.decode_items.shape[0]
    assert (-(-rows[~is_decode] // prefill_rows)).sum() <= plan.prefill_items.shape[0]


@pytest.mark.parametrize(("num_tokens", "max_blocks"), [(1, 1), (1, 1 << 16), (8192, 1 << 13)])
def test_partial_results_take_no_more_memory_than_there_is_or_could_be_used(num_tokens: int, max_blocks: int) -> None:
    attention = Attention(64, 8, 64, scale=1.0)
    plan = dry_plan(num_tokens, 1, attention, max_blocks)
    partial_bytes = plan.partial_outputs.nbytes + plan.partial_sums.nbytes
    assert partial_bytes <= min(PARTIAL_BYTES, num_tokens * max_blocks * 64 * (64 + 2) * 4)


def read_counts(download: Download, plan: AttentionPlan) -> dict[str, int]:
    found = np.frombuffer(download(plan.counts).tobytes(), np.int32)
    return dict(zip([field.name for field in PlanCounts.layout.fields], found.tolist(), strict=True))


def read_items(download: Download, array: DeviceArray, count: int) -> np.ndarray:
    fields = [field for field in Item.layout.fields if field.name != "prefix"]
    dtype = np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": [field.type.code for field in fields],
            "offsets": [field.offset for field in fields],
            "itemsize": Item.layout.num_bytes,
        }
    )
    return download(array)[:count].reshape(-1).view(dtype)


@pytest.mark.gpu
@pytest.mark.sanitize("mixed-*", "decode-*")
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize(
    "chunks",
    [
        [(1499, 1), (1, 1), (63, 1), (299, 1)],
        [(20_000, 1)],
        [(0, 70), (299, 1), (100, 200), (511, 1), (0, 1), (260, 3), (0, 513)],
        [(length, 1) for length in range(0, 6000, 30)],
    ],
    ids=["decode", "one long", "mixed", "many"],
)
def test_every_row_meets_each_of_its_tiles_once(
    context: Context, upload: Upload, download: Download, chunks: list[tuple[int, int]], window: int
) -> None:
    attention = Attention(14, 2, 64, scale=1.0, window=window)
    group = attention.num_heads // attention.num_kv_heads
    starts, counts = np.array(chunks, np.int32).T
    step = step_of(upload, starts, counts)
    plan = plan_attention(context, step, attention)
    totals = read_counts(download, plan)
    assert totals["tokens"] == counts.sum()
    items = [
        *read_items(download, plan.decode_items, totals["decode_items"]),
        *read_items(download, plan.prefill_items, totals["prefill_items"]),
    ]
    met = [np.zeros((count * group, -(-(start + count) // TILE_KEYS)), np.int32) for start, count in chunks]
    for item in items:
        rows = slice(item["first_row"], item["first_row"] + item["num_rows"])
        met[item["sequence"]][rows, item["first_tile"] : item["end_tile"]] += 1
    for (start, count), times in zip(chunks, met, strict=True):
        positions = np.repeat(np.arange(start, start + count), group)[:, None]
        tiles = np.arange(times.shape[1]) * TILE_KEYS
        visible = tiles <= positions
        if window:
            visible &= tiles + TILE_KEYS > positions - window + 1
        assert (times[visible] == 1).all()
        assert times.max() == 1


@pytest.mark.gpu
@pytest.mark.parametrize(("window", "num_items"), [(0, 2), (128, 1), (321, 2)])
@pytest.mark.parametrize("num_sequences", [1, 3])
def test_keys_of_two_splits_are_divided_unless_a_block_takes_all_at_once(
    context: Context, upload: Upload, download: Download, window: int, num_items: int, num_sequences: int
) -> None:
    step = step_of(upload, np.full(num_sequences, 320, np.int32), np.ones(num_sequences, np.int32))
    plan = plan_attention(context, step, Attention(14, 2, 64, scale=1.0, window=window))
    assert read_counts(download, plan)["decode_items"] == num_sequences * num_items


@pytest.mark.gpu
def test_prefill_items_of_many_tiles_come_first_whatever_sequence_they_are_of(
    context: Context, upload: Upload, download: Download
) -> None:
    counts = np.array([600, 2000, 70, 1300], np.int32)
    step = step_of(upload, np.array([0, 0, 1500, 100], np.int32), counts)
    plan = plan_attention(context, step, Attention(14, 2, 64, scale=1.0))
    items = read_items(download, plan.prefill_items, read_counts(download, plan)["prefill_items"])
    tiles = items["end_tile"] - items["first_tile"]
    classes = (tiles - 1) * PREFILL_CLASSES // tiles.max()
    assert (np.diff(classes) <= 0).all() and set(classes) == set(range(PREFILL_CLASSES))
    for each in range(PREFILL_CLASSES):  # a sequence's items read the same keys
        assert (np.diff(items["sequence"][classes == each]) >= 0).all()


@pytest.mark.gpu
def test_prefill_items_have_the_sms_that_decode_items_beside_them_can_do_without(
    context: Context, upload: Upload, download: Download
) -> None:
    shares = []
    for num_decoding in (0, 1, 10, 300):
        starts, counts = np.array([*[2000] * num_decoding, 0]), np.array([*[1] * num_decoding, 1000])
        step = step_of(upload, starts.astype(np.int32), counts.astype(np.int32))
        plan = plan_attention(context, step, Attention(14, 2, 64, scale=1.0))
        shares.append(read_counts(download, plan)["prefill_sms"] / context.gpu.num_sms)
    assert shares[0] == 1 and shares[1] > 0.9 and 0.5 < shares[2] < 0.9
    assert shares[3] == pytest.approx(0.5, abs=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize(("num_sequences", "window"), [(300, 0), (300, 1000), (1000, 0)])
def test_decode_items_of_most_keys_come_first_and_sms_get_long_and_short_ones(
    context: Context, upload: Upload, download: Download, num_sequences: int, window: int
) -> None:
    starts = np.random.default_rng(0).integers(0, 3000, num_sequences).astype(np.int32)
    step = step_of(upload, starts, np.ones(num_sequences, np.int32))
    plan = plan_attention(context, step, Attention(14, 2, 64, scale=1.0, window=window))
    items = read_items(download, plan.decode_items, num_sequences)
    first_splits = np.maximum(starts - (window or 1 << 30) + 1, 0) // SPLIT_TOKENS
    lengths = (starts + 1 - first_splits * SPLIT_TOKENS)[items["sequence"]]
    columns = context.gpu.num_sms // 2
    rows = [lengths[first : first + columns] for first in range(0, num_sequences, columns)]
    assert all(row.min() >= next_row.max() for row, next_row in pairwise(rows))
    assert all((np.diff(row) * (1 if number % 2 else -1) >= 0).all() for number, row in enumerate(rows))


def step_of(upload: Upload, starts: np.ndarray, counts: np.ndarray) -> Step[DeviceArray]:
    """A step of ``counts`` tokens of each sequence from position ``starts`` on; its tables are not read here."""
    num_tokens, num_sequences = int(counts.sum()), counts.size
    ints = {
        "token_ids": np.zeros(num_tokens),
        "positions": np.concatenate(
            [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        ),
        "slots": np.zeros(num_tokens),
        "sequence_rows": np.repeat(np.arange(num_sequences), counts),
        "query_starts": np.concatenate([[0], np.cumsum(counts)]),
        "context_lengths": starts + counts,
        "sequence_lengths": starts + counts,
        "block_tables": np.zeros((num_sequences, int((starts + counts).max()) // 16 + 1)),
        "logit_rows": np.cumsum(counts) - 1,
    }
    return Step(**{name: upload(array.astype(np.int32)) for name, array in ints.items()})
