"""kernels.ops.attention_parts.prefix_attention: attending to a shared beginning together changes not a bit."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest

from kernels.batch import LayerCache, PrefixGroups
from kernels.dry_step import dry_step
from kernels.ops.attention import cache_shape
from kernels.ops.attention_parts import prefix_attention
from kernels.ops.attention_parts.attention_plan_params import PlanCounts
from kernels.registry import CudaOps
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention, Rope
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.attention_case import Case, Chunk, Group, Heads, Runner
from tests.kernels.ops.test_attention import check, same

HEADS = [
    Heads(32, 32, 96),
    Heads(14, 2, 64),
    Heads(64, 8, 64),
    Heads(8, 2, 128),
    Heads(20, 1, 32),
    Heads(2, 2, 80),
    Heads(4, 2, 16),
    Heads(14, 2, 64, is_q8=True),
    Heads(32, 32, 96, is_q8=True),
]
SHARED = [256, 320, 448, 1216]
"""Tokens: with and without an open KV split, and so many that they are divided among items."""


def decoded(case: Case, sequences: list[int]) -> list[Chunk]:
    """The last token of each."""
    return [(sequence, case.lengths[sequence] - 1, 1) for sequence in sequences]


def together(runner: Runner, groups: list[Group]) -> Runner:
    """Runs the same with groups."""
    other = copy(runner)
    other.groups = groups
    return other


@pytest.fixture(params=HEADS, ids=str)
def heads(request: pytest.FixtureRequest) -> Heads:
    heads: Heads = request.param
    return heads


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64-320")
@pytest.mark.parametrize("shared", SHARED)
def test_members_of_a_group_get_what_they_get_alone(
    context: Context, upload: Upload, download: Download, heads: Heads, shared: int
) -> None:
    lengths = [shared + 1 + extra for extra in (0, 1, 63, 64, 65, 200, 255, 256, 300, 700, 5, 6, 7)]
    case = Case(heads, lengths)
    everyone = list(range(len(lengths)))
    case.share(everyone, shared)
    runner = Runner(context, upload, download, case)
    chunks = decoded(case, everyone)
    group: Group = everyone, shared
    found = together(runner, [group]).run(chunks, sinks=True, padding=3, poison=True)
    expected = case.expected(chunks, heads.head_dim**-0.5, 0, True, 0.0)
    check(found[: len(chunks)], expected, heads.is_q8)
    np.testing.assert_array_equal(found[len(chunks) :], 0)
    for number, chunk in list(enumerate(chunks))[::3]:
        same(runner.run([chunk], sinks=True), found[number : number + 1], f"{chunk} alone")
    same(runner.run(chunks, sinks=True, padding=3), found, "without groups")
    same(together(runner, [group]).run(chunks, sinks=True, padding=3, layers=3), found, "in the next layers")


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64-1500")
@pytest.mark.parametrize("window", [1024, 1100, 1500, 2047])
def test_members_see_what_their_windows_hold(
    context: Context, upload: Upload, download: Download, heads: Heads, window: int
) -> None:
    """Of some all of the prefix, of others parts of it, or nothing."""
    shared = 1216
    lengths = [shared + 1 + extra for extra in (0, 60, 100, 300, 800, 900, 1000, 1500, 2100, 2400)]
    case = Case(heads, lengths)
    everyone = list(range(len(lengths)))
    case.share(everyone, shared)
    runner = Runner(context, upload, download, case)
    chunks = decoded(case, everyone)
    found = together(runner, [(everyone, shared)]).run(chunks, window=window)
    check(found, case.expected(chunks, heads.head_dim**-0.5, window, False, 0.0), heads.is_q8)
    same(runner.run(chunks, window=window), found, "without groups")


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64")
def test_groups_decode_beside_others_and_beside_prompts(
    context: Context, upload: Upload, download: Download, heads: Heads
) -> None:
    lengths = [700, 900, 901, 350, 1000, 1100, 100, 600, 601, 602, 300]
    case = Case(heads, lengths)
    case.share([0, 2, 4], 512)
    case.share([7, 8, 9, 10], 256)
    runner = Runner(context, upload, download, case)
    chunks: list[Chunk] = [*decoded(case, [9, 0, 1, 2, 8, 3, 4, 7, 10]), (5, 300, 700), (6, 0, 1)]
    groups: list[Group] = [([6, 1, 3], 512), ([0, 4, 7, 8], 256)]
    found = together(runner, groups).run(chunks)
    check(found, case.expected(chunks, heads.head_dim**-0.5, 0, False, 0.0), heads.is_q8)
    same(runner.run(chunks), found, "without groups")


@pytest.mark.gpu
@pytest.mark.parametrize("state_bytes", [0, prefix_attention.STATE_BYTES])
def test_many_members_are_divided_by_rows_and_by_keys_as_far_as_there_is_room(
    context: Context, upload: Upload, download: Download, monkeypatch: pytest.MonkeyPatch, state_bytes: int
) -> None:
    monkeypatch.setattr(prefix_attention, "STATE_BYTES", state_bytes)
    heads = Heads(14, 2, 64)
    lengths = np.random.default_rng(0).integers(1990, 2200, 100).tolist()
    case = Case(heads, lengths)
    everyone = list(range(100))
    case.share(everyone, 1984)
    runner = Runner(context, upload, download, case)
    chunks = decoded(case, everyone)
    found = together(runner, [(everyone, 1984)]).run(chunks)
    check(found, case.expected(chunks, heads.head_dim**-0.5, 0, False, 0.0), heads.is_q8)
    same(runner.run(chunks), found, "without groups")


@pytest.mark.gpu
def test_what_a_member_has_alone_is_still_split_over_blocks(
    context: Context, upload: Upload, download: Download
) -> None:
    heads = Heads(8, 1, 64)
    case = Case(heads, [9000, 5000])
    case.share([0, 1], 320)
    runner = Runner(context, upload, download, case)
    chunks = decoded(case, [0, 1])
    found = together(runner, [([0, 1], 320)]).run(chunks, sinks=True)
    check(found, case.expected(chunks, 64**-0.5, 0, True, 0.0), heads.is_q8)
    same(runner.run(chunks, sinks=True), found, "without groups")


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64")
def test_a_step_that_rotates_and_writes_has_the_same_bits_with_groups(
    context: Context, upload: Upload, download: Download, heads: Heads
) -> None:
    lengths = [600, 513, 514, 577, 800, 30]
    case = Case(heads, lengths)
    members = [4, 0, 2, 1, 3]
    case.share(members, 512)
    runner = Runner(context, upload, download, case)
    frequencies = 1 / 10000 ** (np.arange(heads.head_dim // 2) / (heads.head_dim // 2))
    rope = Rope(upload(frequencies.astype(np.float32)[None]), "neox")
    expected = runner.decode(list(range(6)), rope, None, fused=True, padding=2)
    actual = together(runner, [(members, 512)]).decode(list(range(6)), rope, None, fused=True, padding=2)
    for number, (wanted, found) in enumerate(zip(expected, actual, strict=True)):
        same(found, wanted, f"array {number} of those attended, keys and values")


def halves(*shape: int) -> DeviceArray:
    return DeviceArray(0, shape, np.dtype(np.float16))


def ints(*shape: int) -> DeviceArray:
    return DeviceArray(0, shape, np.dtype(np.int32))


@pytest.mark.parametrize(("window", "launches"), [(0, 3), (128, 1), (2047, 3)])
def test_a_layer_with_a_small_window_attends_for_each_alone(window: int, launches: int) -> None:
    context = Context(H100)
    ops = CudaOps(context)
    step = dry_step(64, 64, 64, 8, prefixes=PrefixGroups(ints(4, 3), ints(64)))
    attention = Attention(14, 2, 64, scale=1.0, window=window)
    plan = ops.plan_attention(step, attention)
    cache = LayerCache(*(halves(*cache_shape(100, 16, 2, 64)) for _ in "kv"))
    before = context.num_launches
    out, qkv = halves(64, 14 * 64), halves(64, 18 * 64)
    ops.rope_attention(qkv, None, attention, step, plan, out_cache=cache, out=out)
    assert context.num_launches - before == launches


def test_each_row_has_room_for_two_states_however_many_rows_there_are() -> None:
    step = dry_step(1024, 1024, 1024, 1 << 13, prefixes=PrefixGroups(ints(32, 3), ints(1024)))
    plan = prefix_attention.plan_prefixes(Context(H100), step.prefixes, Attention(64, 8, 64, scale=1.0), 1 << 13)
    assert plan.num_rows >= 2 * 1024 * 8
    assert PlanCounts.layout.num_bytes == 24
