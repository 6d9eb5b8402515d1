"""kernels.ops.rope against the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.batch import LayerCache
from kernels.ops.attention import cache_shape
from kernels.ops.rope import HEAD_DIMS, WIDE_HEAD_DIMS, Rotation, rope_write, rotation
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention, Pairing, QueryGrowth, RmsNorm, Rope
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.attention_case import coded, layer_cache

pytestmark = pytest.mark.gpu

EPSILON = 1e-5


@pytest.mark.sanitize("*-7")
@pytest.mark.parametrize("num_tokens", [1, 7, 1000])
@pytest.mark.parametrize("long_after", [None, 4096])
def test_angles_are_exact_to_float32(
    context: Context, upload: Upload, download: Download, num_tokens: int, long_after: int | None
) -> None:
    rng = np.random.default_rng(num_tokens)
    frequencies = (1 / 10000 ** (np.arange(32) / 32)).astype(np.float32) / np.array([[1], [8]], np.float32)
    positions = rng.integers(0, 131072, num_tokens).astype(np.int32)
    positions[-1:] = 131071
    lengths = np.array([4096, 4097, 131072], np.int32)
    rows = rng.integers(0, 3, num_tokens).astype(np.int32)
    rope = Rope(upload(frequencies if long_after else frequencies[:1]), "neox", 1.25, long_after)
    by = rotation(context, upload(positions), rope, upload(lengths), upload(rows))
    chosen = frequencies[(lengths[rows] > 4096).astype(int) if long_after else np.zeros(num_tokens, int)]
    angles = (positions[:, None].astype(np.float32) * chosen).astype(np.float64)
    np.testing.assert_allclose(download(by.cosine), np.cos(angles) * 1.25, atol=3e-7)
    np.testing.assert_allclose(download(by.sine), np.sin(angles) * 1.25, atol=3e-7)
    assert by.query_factors is None


def test_queries_grow_with_every_interval(context: Context, upload: Upload, download: Download) -> None:
    positions = np.array([-1, 0, 15, 16, 31, 32, 1_000_000], np.int32)
    rope = Rope(upload(np.ones((1, 8), np.float32)), "normal", query_growth=QueryGrowth(0.1, 16))
    zeros = upload(np.zeros(7, np.int32))
    by = rotation(context, upload(positions), rope, zeros, zeros)
    assert by.query_factors is not None
    expected = 1 + 0.1 * np.log1p(positions.clip(0) // 16)
    np.testing.assert_allclose(download(by.query_factors), expected, rtol=3e-7)


def test_padded_tokens_get_finite_angles(context: Context, upload: Upload, download: Download) -> None:
    rope = Rope(upload(np.ones((1, 8), np.float32)), "neox")
    zero = upload(np.zeros(3, np.int32))
    by = rotation(context, upload(np.full(3, -1, np.int32)), rope, zero, zero)
    assert np.isfinite(download(by.cosine)).all()
    assert np.isfinite(download(by.sine)).all()


def rotated(heads: np.ndarray, cosine: np.ndarray, sine: np.ndarray, pairing: Pairing) -> np.ndarray:
    """``heads`` [T, heads, D], rotated by ``cosine`` and ``sine`` [T, P]."""
    num_pairs = cosine.shape[1]
    first = slice(num_pairs) if pairing == "neox" else slice(0, 2 * num_pairs, 2)
    second = slice(num_pairs, 2 * num_pairs) if pairing == "neox" else slice(1, 2 * num_pairs, 2)
    result = heads.copy()
    result[..., first] = heads[..., first] * cosine[:, None] - heads[..., second] * sine[:, None]
    result[..., second] = heads[..., second] * cosine[:, None] + heads[..., first] * sine[:, None]
    return result


@pytest.mark.sanitize("14-2-True-neox-*")
@pytest.mark.parametrize("head_dim", HEAD_DIMS + WIDE_HEAD_DIMS)
@pytest.mark.parametrize("pairing", ["neox", "normal", None])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(14, 2), (3, 3)])
def test_heads_are_rotated_and_stored(
    context: Context,
    upload: Upload,
    download: Download,
    head_dim: int,
    pairing: Pairing | None,
    norms: bool,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    rng = np.random.default_rng(head_dim)
    num_tokens, block_tokens, num_blocks = 33, 32, 5
    for num_pairs in (head_dim // 2, head_dim // 4):
        width = num_heads + 2 * num_kv_heads
        qkv = rng.normal(size=(num_tokens, width, head_dim)).astype(np.float16)
        slots = rng.permutation(num_blocks * block_tokens)[:num_tokens].astype(np.int32)
        slots[::7] = -1
        angles = rng.uniform(0, 6, (num_tokens, num_pairs))
        cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        factors = rng.uniform(1, 2, num_tokens).astype(np.float32) if 2 * num_pairs == head_dim else None
        device_factors = None if factors is None else upload(factors)
        by = Rotation(upload(cosine), upload(sine), pairing, device_factors) if pairing else None
        weights = rng.normal(size=(2, head_dim)).astype(np.float32)
        head_norms = (RmsNorm(upload(weights[0]), EPSILON), RmsNorm(upload(weights[1]), 2 * EPSILON))
        shape = cache_shape(num_blocks, block_tokens, num_kv_heads, head_dim)
        poison = np.full(shape, np.nan, np.float16)
        out = LayerCache(upload(poison), upload(poison))
        attention = Attention(num_heads, num_kv_heads, head_dim, scale=1.0, head_norms=head_norms if norms else None)
        device_qkv = upload(qkv.reshape(num_tokens, -1))
        device_slots = upload(slots)
        rope_write(context, device_qkv, device_slots, by, attention, out_cache=out)
        expected = qkv.astype(np.float64)
        for part, weight, epsilon in (
            (slice(num_heads), weights[0], EPSILON),
            (slice(num_heads, num_heads + num_kv_heads), weights[1], 2 * EPSILON),
        ):
            heads = expected[:, part]
            if norms:
                heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + epsilon) * weight
            expected[:, part] = rotated(heads, cosine, sine, pairing) if pairing else heads
        if pairing and factors is not None:
            expected[:, :num_heads] *= factors[:, None, None]
        written = slots >= 0
        blocks, rows = slots[written] // block_tokens, slots[written] % block_tokens
        queries = download(device_qkv).reshape(qkv.shape)[:, :num_heads]
        close = {"rtol": 2e-3, "atol": 2e-3}
        np.testing.assert_allclose(queries[written], expected[written, :num_heads], **close)
        for cache, part in ((out.keys, slice(num_heads, -num_kv_heads)), (out.values, slice(-num_kv_heads, None))):
            stored = download(cache)
            np.testing.assert_allclose(stored[blocks, :, rows], expected[written, part], **close)
            stored[blocks, :, rows] = np.nan
            assert np.isnan(stored).all(), "something else was written"


@pytest.mark.parametrize("num_tokens", [1, 257])
def test_a_token_gets_the_same_bits_alone(
    context: Context, upload: Upload, download: Download, num_tokens: int
) -> None:
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(num_tokens, 18 * 64)).astype(np.float16)
    rope = Rope(upload((1 / 10000 ** (np.arange(32) / 32)).astype(np.float32)[None]), "neox")
    norm = RmsNorm(upload(np.ones(64, np.float32)), 1e-6)
    attention = Attention(14, 2, 64, scale=1.0, head_norms=(norm, norm))

    def run(tokens: slice) -> np.ndarray:
        positions = upload(np.arange(num_tokens, dtype=np.int32)[tokens])
        zero = upload(np.zeros(num_tokens, np.int32)[tokens])
        by = rotation(context, positions, rope, zero, zero)
        out = LayerCache(*(upload(np.zeros(cache_shape(num_tokens, 16, 2, 64), np.float16)) for _ in "kv"))
        rows = upload(qkv[tokens])
        rope_write(context, rows, positions, by, attention, out_cache=out)
        result: np.ndarray = download(rows)
        return result

    together = run(slice(None))
    for token in (0, num_tokens // 2, num_tokens - 1):
        np.testing.assert_array_equal(run(slice(token, token + 1))[0], together[token])


@pytest.mark.sanitize("256")
@pytest.mark.parametrize("head_dim", [64, 128, 256, 512])
def test_values_may_have_a_norm_and_a_layer_queries_only(
    context: Context, upload: Upload, download: Download, head_dim: int
) -> None:
    rng = np.random.default_rng(head_dim)
    num_tokens = 37
    qkv = rng.normal(0, 3, (num_tokens, 6, head_dim)).astype(np.float16)  # 4 heads, one KV head
    slots = upload(rng.permutation(64)[:num_tokens].astype(np.int32))
    angles = rng.uniform(0, 6, (num_tokens, head_dim // 2))
    by = Rotation(upload(np.cos(angles).astype(np.float32)), upload(np.sin(angles).astype(np.float32)), "neox")
    norm = RmsNorm(upload(np.ones(head_dim, np.float32)), EPSILON)
    attention = Attention(4, 1, head_dim, scale=1.0, head_norms=(norm, norm), value_norm=norm)
    out = LayerCache(*(upload(np.zeros(cache_shape(4, 16, 1, head_dim), np.float16)) for _ in "kv"))
    whole = upload(qkv.reshape(num_tokens, -1))
    rope_write(context, whole, slots, by, attention, out_cache=out)
    where = download(slots)
    stored = download(out.values)[where // 16, 0, where % 16].astype(np.float64)
    values = qkv[:, 5].astype(np.float64)
    expected = values / np.sqrt((values**2).mean(-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=2e-3)
    before = [download(array) for array in out.arrays()]
    queries = upload(np.ascontiguousarray(qkv[:, :4]).reshape(num_tokens, -1))
    rope_write(context, queries, slots, by, replace(attention, shares_cache=True), out_cache=out)
    np.testing.assert_array_equal(download(queries), download(whole)[:, : 4 * head_dim])
    for array, kept in zip(out.arrays(), before, strict=True):
        np.testing.assert_array_equal(download(array), kept)


@pytest.mark.sanitize("*-96", "*-512")
@pytest.mark.parametrize("head_dim", HEAD_DIMS + WIDE_HEAD_DIMS)
@pytest.mark.parametrize("pairing", ["neox", "normal", None])
def test_heads_are_stored_as_the_codes_that_the_reference_makes_of_them(
    context: Context, upload: Upload, download: Download, head_dim: int, pairing: Pairing | None
) -> None:
    """Bit for bit of what would be stored as float16."""
    rng = np.random.default_rng(head_dim)
    num_tokens, num_heads, num_kv_heads = 200, 3, 2
    qkv = rng.normal(size=(num_tokens, num_heads + 2 * num_kv_heads, head_dim)) * 10.0 ** rng.uniform(
        -9, 4, (200, 1, 1)
    )
    qkv[:8] = 0
    qkv[1, :, 3], qkv[2, :, -1], qkv[3, :, 0], qkv[4, :, ::2] = np.nan, 65504, 6e-8, 0.5
    qkv[5, :, 1::3], qkv[6] = -7.62e-6, rng.integers(-253, 254, (1, head_dim)) / 2
    qkv[6, :, 0] = 127  # the scale is 1: every second element lies between two codes
    qkv = qkv.clip(-65504, 65504).astype(np.float16)
    slots = rng.permutation(256)[:num_tokens].astype(np.int32)
    slots[::7] = -1
    angles = rng.uniform(0, 6, (num_tokens, head_dim // 2))
    by = Rotation(*(upload(f(angles).astype(np.float32)) for f in (np.cos, np.sin)), pairing) if pairing else None
    norm = RmsNorm(upload(rng.normal(size=head_dim).astype(np.float32)), EPSILON)
    attention = Attention(num_heads, num_kv_heads, head_dim, scale=1.0, head_norms=(norm, norm) if pairing else None)

    def written(*, is_q8: bool) -> list[np.ndarray]:
        shape = cache_shape(8, 32, num_kv_heads, head_dim)
        halves = [np.full(shape if not is_q8 else shape[:-1], np.nan, np.float16) for _ in "kv"]
        codes = [np.full(shape, 99, np.int8) for _ in "kv"] if is_q8 else []
        caches = [upload(each) for each in (*codes, *halves)]
        rows = upload(qkv.reshape(num_tokens, -1))
        rope_write(context, rows, upload(slots), by, attention, out_cache=layer_cache(caches))
        queries = download(rows)[:, : num_heads * head_dim]
        return [queries, *map(download, caches)]

    queries, keys, values = written(is_q8=False)
    same_queries, key_codes, value_codes, key_scales, value_scales = written(is_q8=True)
    np.testing.assert_array_equal(same_queries, queries)
    used = slots[slots >= 0]
    for heads, actual_codes, actual_scales in ((keys, key_codes, key_scales), (values, value_codes, value_scales)):
        codes, scales = coded(heads)
        blocks, places = used // 32, used % 32
        np.testing.assert_array_equal(actual_codes[blocks, :, places], codes[blocks, :, places])
        np.testing.assert_array_equal(actual_scales, scales)  # NaN where nothing is written
        actual_codes[blocks, :, places] = 99
        assert (actual_codes == 99).all(), "something else was written"


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("pairing", ["neox", "normal"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(14, 2), (9, 3), (32, 32)])
def test_heads_that_are_rotated_as_a_whole_have_the_same_bits_in_both_kernels(
    context: Context,
    upload: Upload,
    download: Download,
    head_dim: int,
    pairing: Pairing,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """A cache of 8 bits has the other kernel. Keys are the first queries here, which shows what is stored of them."""
    rng = np.random.default_rng(head_dim)
    num_tokens, block_tokens, num_blocks = 201, 16, 20
    qkv = rng.normal(size=(num_tokens, num_heads + 2 * num_kv_heads, head_dim)).astype(np.float16)
    qkv[:, num_heads : num_heads + num_kv_heads] = qkv[:, :num_kv_heads]
    angles = rng.uniform(0, 6, (num_tokens, head_dim // 2))
    by = Rotation(upload(np.cos(angles).astype(np.float32)), upload(np.sin(angles).astype(np.float32)), pairing)
    slots = rng.permutation(num_blocks * block_tokens)[:num_tokens].astype(np.int32)
    attention = Attention(num_heads, num_kv_heads, head_dim, scale=1.0)
    shape = cache_shape(num_blocks, block_tokens, num_kv_heads, head_dim)
    halves = np.full(shape, np.nan, np.float16)
    codes, scales = coded(np.zeros_like(halves))
    plain = layer_cache([upload(halves), upload(halves)])
    with_codes = layer_cache([upload(codes), upload(codes), upload(scales), upload(scales)])
    found = []
    for cache in (plain, with_codes):
        device_qkv = upload(qkv.reshape(num_tokens, -1))
        rope_write(context, device_qkv, upload(slots), by, attention, out_cache=cache)
        found.append(download(device_qkv).reshape(qkv.shape)[:, :num_heads])
    np.testing.assert_array_equal(*found)
    blocks, rows = slots // block_tokens, slots % block_tokens
    np.testing.assert_array_equal(download(plain.keys)[blocks, :, rows], found[0][:, :num_kv_heads])
    np.testing.assert_array_equal(download(plain.values)[blocks, :, rows], qkv[:, -num_kv_heads:])
