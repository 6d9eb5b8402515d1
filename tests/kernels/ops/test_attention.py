"""kernels.ops.attention against the formula in float64, and against itself however the work is cut."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.batch import SHORT_CHUNK, LayerCache
from kernels.dry_step import dry_step
from kernels.ops.attention import cache_shape, depends_on_context
from kernels.ops.attention_plan import SHORT_CROWD
from kernels.ops.rope import HEAD_DIMS
from kernels.registry import CudaOps
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention, Pairing, QueryGrowth, RmsNorm, Rope
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.attention_case import Case, Chunk, Heads, Runner

GROUPS = [
    Heads(4, 4, 64),
    Heads(10, 2, 64),
    Heads(14, 2, 64),
    Heads(16, 2, 128),
    Heads(3, 3, 96),
    Heads(20, 1, 32),
    Heads(2, 2, 80),
    Heads(4, 2, 16),
    Heads(4, 2, 256),
    Heads(3, 3, 256),
    Heads(20, 1, 512),
    *(
        Heads(*heads, is_q8=True)
        for heads in ((14, 2, 64), (16, 2, 128), (3, 3, 96), (20, 1, 32), (2, 2, 80), (4, 2, 16), (4, 2, 256))
    ),
    Heads(20, 1, 512, is_q8=True),
]
CONTEXTS = [1, 63, 64, 65, 127, 128, 129, 256, 257, 1000, 4096]
MIXED: list[Chunk] = [(0, 0, 70), (1, 299, 1), (2, 100, 200), (3, 511, 1), (4, 0, 1), (5, 260, 3), (6, 0, 513)]
MIXED_LENGTHS = [70, 300, 300, 512, 1, 263, 513]


@pytest.fixture(params=GROUPS, ids=str)
def heads(request: pytest.FixtureRequest) -> Heads:
    heads: Heads = request.param
    return heads


def check(actual: np.ndarray, expected: np.ndarray, is_q8: bool) -> None:
    """Within float16's rounding of weights (2^-11 of the largest values that were added up) and of the result.

    Weights of codes are rounded twice, before and after they are multiplied by the scales of values.
    """
    tolerance = (3e-3 if is_q8 else 2e-3) * np.abs(expected).max(axis=-1, keepdims=True) + 2e-3
    error = np.abs(actual.astype(np.float64) - expected)
    wrong = np.argwhere(~(error <= tolerance))
    where = wrong[:3].tolist()
    values = [(float(actual[tuple(at)]), float(expected[tuple(at)])) for at in wrong[:3]]
    assert not wrong.size, (
        f"{len(wrong)} of {error.size} wrong, largest error {np.nanmax(error):.3g}, NaN {np.isnan(actual).sum()}, "
        f"tokens {np.unique(wrong[:, 0])[:8]}, heads {np.unique(wrong[:, 1])[:8]}; {where}: {values}"
    )


def run_and_check(runner: Runner, chunks: list[Chunk], window: int, sinks: bool, padding: int = 0) -> None:
    actual = runner.run(chunks, window=window, sinks=sinks, padding=padding, poison=True)
    expected = runner.case.expected(chunks, runner.case.heads.head_dim**-0.5, window, sinks, runner.softcap)
    check(actual[: expected.shape[0]], expected, runner.case.heads.is_q8)
    np.testing.assert_array_equal(actual[expected.shape[0] :], 0)


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64-*", "3/3x96q8-*", "4/2x256-False-100", "20/1x512q8-True-100")
@pytest.mark.parametrize("window", [0, 1, 100, 128])
@pytest.mark.parametrize("sinks", [False, True])
def test_decode_attends_to_the_whole_context(
    context: Context, upload: Upload, download: Download, heads: Heads, window: int, sinks: bool
) -> None:
    runner = Runner(context, upload, download, Case(heads, CONTEXTS))
    run_and_check(runner, [(row, length - 1, 1) for row, length in enumerate(CONTEXTS)], window, sinks, padding=5)


@pytest.mark.gpu
@pytest.mark.sanitize("256")
@pytest.mark.parametrize("length", CONTEXTS)
def test_one_stream_decodes_at_any_context(context: Context, upload: Upload, download: Download, length: int) -> None:
    runner = Runner(context, upload, download, Case(Heads(14, 2, 64), [length]))
    run_and_check(runner, [(0, length - 1, 1)], 0, False)


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64-*", "3/3x96q8-*", "4/2x256-False-100", "20/1x512q8-True-100")
@pytest.mark.parametrize("window", [0, 1, 100, 128])
@pytest.mark.parametrize("sinks", [False, True])
def test_prefill_chunks_and_decode_share_a_step(
    context: Context, upload: Upload, download: Download, heads: Heads, window: int, sinks: bool
) -> None:
    runner = Runner(context, upload, download, Case(heads, MIXED_LENGTHS))
    run_and_check(runner, MIXED, window, sinks, padding=2)


@pytest.mark.gpu
@pytest.mark.sanitize("48")
@pytest.mark.parametrize("block_tokens", [32, 48, 256])
def test_cache_blocks_may_be_larger(context: Context, upload: Upload, download: Download, block_tokens: int) -> None:
    for heads in (Heads(4, 2, 64), Heads(4, 2, 64, is_q8=True), Heads(4, 2, 256, is_q8=True)):
        runner = Runner(context, upload, download, Case(heads, MIXED_LENGTHS, block_tokens=block_tokens))
        run_and_check(runner, MIXED, 0, False)


@pytest.mark.gpu
def test_a_step_of_as_many_sequences_as_tokens_may_hold_several_tokens_of_one(
    context: Context, upload: Upload, download: Download
) -> None:
    """By its array shapes it looks like a decode step: all of it is decode work, done right."""
    runner = Runner(context, upload, download, Case(Heads(14, 2, 64), [40, 700]))
    run_and_check(runner, [(0, 0, 40), (1, 690, 10), *[(0, 0, 0)] * 48], 0, False)


@pytest.mark.gpu
@pytest.mark.sanitize("4/2x256")
@pytest.mark.parametrize(
    "heads", [Heads(*shape, is_q8=is_q8) for is_q8 in (False, True) for shape in ((16, 2, 128), (4, 2, 256))], ids=str
)
def test_scores_have_a_soft_cap(context: Context, upload: Upload, download: Download, heads: Heads) -> None:
    runner = Runner(context, upload, download, Case(heads, MIXED_LENGTHS), softcap=1.5)
    run_and_check(runner, MIXED, 0, False)
    run_and_check(runner, [(sequence, length - 1, 1) for sequence, length in enumerate(MIXED_LENGTHS)], 100, False)
    assert_fused_is_the_same(runner, [1, 3, 6], None, None, window=0)


def same(a: np.ndarray, b: np.ndarray, what: str) -> None:
    different = np.argwhere(a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}"))
    assert not different.size, f"{what}: {len(different)} of {a.size} differ, first at {different[:4].tolist()}"


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64-*", "14/2x64q8-*")
@pytest.mark.parametrize("window", [0, 100])
def test_bits_do_not_depend_on_chunks_neighbours_or_splitting(
    context: Context, upload: Upload, download: Download, heads: Heads, window: int
) -> None:
    lengths = [1500, 700, 90, 2100]
    runner = Runner(context, upload, download, Case(heads, lengths))

    def run(*chunks: Chunk, layers: int = 1) -> np.ndarray:
        return runner.run(list(chunks), window=window, sinks=True, layers=layers)

    whole = run((0, 0, 1500))
    chunks = [run((0, start, min(333, 1500 - start))) for start in range(0, 1500, 333)]
    same(np.concatenate(chunks), whole, "in chunks")
    same(run((2, 0, 90), (0, 0, 1500), (3, 2099, 1))[90:1590], whole, "among others")
    for position in (0, 15, 63, 64, 255, 256, 257, 300, 1023, 1024, 1499):
        alone = run((0, position, 1))
        same(alone, whole[position : position + 1], f"token {position} decoded")
        same(run((0, position, 1), layers=3), alone, f"token {position} again in the next layers")
        same(run((3, 2099, 1), (0, position, 1), (1, 10, 1))[1:2], alone, f"token {position} decoded among 3")
        crowd: list[Chunk] = [(1, at, 1) for at in range(690)]
        same(run(*crowd, (0, position, 1))[-1:], alone, f"token {position} decoded among 691")


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [Heads(8, 1, 64), Heads(8, 1, 64, is_q8=True)], ids=str)
def test_long_contexts_are_split_over_blocks(
    context: Context, upload: Upload, download: Download, heads: Heads
) -> None:
    case = Case(heads, [40000])
    runner = Runner(context, upload, download, case)
    chunks: list[Chunk] = [(0, 39999, 1)]
    run_and_check(runner, chunks, 0, True)
    chunk = runner.run([(0, 39990, 10)], sinks=True)
    same(runner.run(chunks, sinks=True), chunk[-1:], "decoded")


NEW_LENGTHS = [1, 2, 16, 17, 64, 65, 129, 256, 257, 513, 1100, 3]


def assert_fused_is_the_same(
    runner: Runner,
    sequences: list[int],
    rope: Rope | None,
    head_norms: tuple[RmsNorm, RmsNorm] | None,
    *,
    window: int,
    padding: int = 0,
) -> None:
    """In what it attends and in all of the cache; for one layer, just after the plan's kernel, and for more."""

    def decode(fused: bool, layers: int = 1) -> list[np.ndarray]:
        sinks = window != 0
        options = {"window": window, "padding": padding, "layers": layers}
        return runner.decode(sequences, rope, head_norms, fused=fused, sinks=sinks, **options)

    expected = decode(fused=False)
    np.testing.assert_array_equal(expected[0][len(sequences) :], 0)
    assert np.isfinite(expected[0]).all()
    # Kernels for long heads rotate queries where they are, for one layer only.
    for layers in (1, 3) if runner.case.heads.head_dim in HEAD_DIMS else (1,):
        names = ("out", "keys", "values", "scales of keys", "scales of values")[: len(expected)]
        for actual, wanted, what in zip(decode(True, layers), expected, names, strict=True):
            same(actual, wanted, f"{what} of sequences {sequences} after {layers} layers")


@pytest.mark.gpu
@pytest.mark.sanitize("14/2x64-*", "14/2x64q8-*")
@pytest.mark.parametrize("rope", ["neox", "normal", "partial", "long", "growing", None])
@pytest.mark.parametrize(("window", "norms"), [(0, False), (100, True)])
def test_a_decode_step_rotates_and_writes_on_its_way_with_the_same_bits(
    context: Context, upload: Upload, download: Download, heads: Heads, rope: str | None, window: int, norms: bool
) -> None:
    num_pairs = heads.head_dim // (4 if rope == "partial" else 2)
    frequencies = (1 / 10000 ** (np.arange(num_pairs) / num_pairs)).astype(np.float32) / np.array(
        [[1], [8]], np.float32
    )
    pairing: Pairing = "normal" if rope == "normal" else "neox"
    if rope == "long":
        by = Rope(upload(frequencies), pairing, attention_factor=1.2, long_after=100)
    elif rope == "growing":
        by = Rope(upload(frequencies[:1]), pairing, query_growth=QueryGrowth(0.3, 16))
    else:
        by = Rope(upload(frequencies[:1]), pairing)
    weights = np.random.default_rng(0).normal(size=(2, heads.head_dim)).astype(np.float32)
    head_norms = (RmsNorm(upload(weights[0]), 1e-5), RmsNorm(upload(weights[1]), 1e-6)) if norms else None
    runner = Runner(context, upload, download, Case(heads, NEW_LENGTHS))
    everyone = list(range(len(NEW_LENGTHS)))
    assert_fused_is_the_same(runner, everyone, by if rope else None, head_norms, window=window, padding=4)
    for sequences in ([8], [10], [0], [2, 10, 5], [11, 9, 0]):  # most find the plan of the one before in memory
        assert_fused_is_the_same(runner, sequences, by if rope else None, head_norms, window=window)


@pytest.mark.gpu
@pytest.mark.sanitize("0-0-64/8x64")
@pytest.mark.parametrize(
    "heads",
    [Heads(14, 2, 64), Heads(32, 32, 96), Heads(64, 8, 64), Heads(20, 1, 32), Heads(32, 32, 96, is_q8=True)],
    ids=str,
)
@pytest.mark.parametrize("window", [0, 128])
@pytest.mark.parametrize("padding", [0, 64])
def test_many_sequences_rotate_and_write_on_their_way(
    context: Context, upload: Upload, download: Download, heads: Heads, window: int, padding: int
) -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 64).tolist()
    runner = Runner(context, upload, download, Case(heads, lengths))
    pairs = heads.head_dim // 2
    rope = Rope(upload((1 / 10000 ** (np.arange(pairs) / pairs)).astype(np.float32)[None]), "neox")
    assert_fused_is_the_same(runner, list(range(64)), rope, None, window=window, padding=padding)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [Heads(8, 1, 64), Heads(8, 1, 64, is_q8=True)], ids=str)
def test_a_long_context_rotates_and_writes_on_its_way(
    context: Context, upload: Upload, download: Download, heads: Heads
) -> None:
    runner = Runner(context, upload, download, Case(heads, [20000, 7]))
    rope = Rope(upload((1 / 10000 ** (np.arange(32) / 32)).astype(np.float32)[None]), "neox")
    for sequences in ([0], [1, 0]):
        assert_fused_is_the_same(runner, sequences, rope, None, window=0)


@pytest.mark.parametrize(
    ("num_tokens", "num_sequences", "launches", "last"),
    [
        *((number, number, 1, "rope_attention_decode") for number in (1, 64)),
        *((65, 64, 3, "attention_decode"), (8256, 64, 2, "attention_prefill_hopper")),
    ],
)
def test_a_decode_step_takes_one_kernel(num_tokens: int, num_sequences: int, launches: int, last: str) -> None:
    context = Context(H100)
    ops = CudaOps(context)

    def halves(*shape: int) -> DeviceArray:
        return DeviceArray(0, shape, np.dtype(np.float16))

    has_short_chunks = num_tokens <= SHORT_CHUNK * num_sequences
    step = replace(dry_step(num_tokens, num_sequences, num_sequences, 8), has_short_chunks=has_short_chunks)
    attention = Attention(14, 2, 64, scale=1.0)
    plan = ops.plan_attention(step, attention)
    cache = LayerCache(*(halves(*cache_shape(100, 16, 2, 64)) for _ in "kv"))
    before = context.num_launches
    qkv, out = halves(num_tokens, 18 * 64), halves(num_tokens, 14 * 64)
    ops.rope_attention(qkv, None, attention, step, plan, out_cache=cache, out=out)
    assert (context.num_launches - before, context.last_enqueued) == (launches, last)


@pytest.mark.gpu
def test_blocks_for_long_contexts_of_many_sequences_have_the_bits_of_those_for_short_ones(
    context: Context, upload: Upload, download: Download
) -> None:
    heads = Heads(14, 2, 64)
    num_sequences = 1 + SHORT_CROWD * context.gpu.num_sms // heads.num_kv_heads
    assert depends_on_context(context.gpu, heads.num_kv_heads, heads.head_dim, num_sequences) == context.gpu.has_wgmma
    case = Case(heads, np.random.default_rng(0).integers(1, 300, num_sequences).tolist())
    rope = Rope(upload((1 / 10000 ** (np.arange(32) / 32)).astype(np.float32)[None]), "neox")
    everyone = list(range(num_sequences))
    runner = Runner(context, upload, download, case)
    for runner.has_long_context in (False, True):
        assert_fused_is_the_same(runner, everyone, rope, None, window=0)
