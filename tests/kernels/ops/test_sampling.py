"""kernels.ops.sampling against its NumPy reference: the same ids, whatever the batch."""

from __future__ import annotations

import re

import numpy as np
import pytest

import kernels.reference.sampling as reference
from kernels.batch import SAMPLING_ROW, Adjustments, SamplingParams
from kernels.ops import sampling
from kernels.runtime.compiler import SOURCE_DIRECTORY, read_source
from kernels.runtime.launcher import Context
from tests.kernels.conftest import Download, Empty, Upload

FILTERS = ("temperature", "top_k", "top_p", "min_p")


def make_rows(rng: np.random.Generator, num_rows: int, vocab_size: int) -> np.ndarray:
    """Logits of every kind: smooth, flat, peaked, tied, huge, banned, broken; in random order."""
    rows = rng.normal(size=(num_rows, vocab_size)).astype(np.float32)
    for row, kind in zip(rows, rng.permutation(num_rows) % 12, strict=True):
        if kind < 3:
            row *= 3
        elif kind == 3:
            row *= 0.05
        elif kind == 4:
            row[rng.integers(vocab_size)] += 25
        elif kind == 5:
            row[:] = np.round(row * 4) / 4 * rng.choice([-1, 1], vocab_size)  # ties, and zeros of both signs
        elif kind == 6:
            row[:] = 1.5
        elif kind == 7:
            row[rng.random(vocab_size) < 0.98] = -np.inf
        elif kind == 8:
            row[:] = np.clip(row, -3.3, 3.3) * np.float32(1e38)
        elif kind == 9:
            row[rng.integers(vocab_size)] = rng.choice([np.nan, np.inf])
        elif kind == 10:
            row[:] = -np.inf
        else:
            row *= 12
    return rows


def make_columns(rng: np.random.Generator, num_rows: int, vocab_size: int) -> dict[str, np.ndarray]:
    def choose(values: list[float], dtype: type) -> np.ndarray:
        return rng.choice(values, num_rows).astype(dtype)

    return {
        "temperature": choose([0, 1e-30, 0.05, 0.7, 0.7, 1, 1, 2], np.float32),
        "top_k": choose([0, 0, 1, 2, 40, 1000, vocab_size // 2, vocab_size - 1, vocab_size, vocab_size + 7], np.int32),
        "top_p": choose([1, 1, 1e-6, 0.3, 0.5, 0.9, 0.95, 0.999999], np.float32),
        "min_p": choose([0, 0, 0, 0.001, 0.05, 0.5, 1], np.float32),
        "key": rng.integers(0, 2**63, num_rows).astype(np.uint64) * np.uint64(2) + np.uint64(1),
        "output_positions": rng.integers(0, 2**34, num_rows),
    }


def distance_to_top_p(logits: np.ndarray, temperature: float, top_k: int, top_p: float, **_: object) -> float:
    """How close, relatively, the mass of some number of values comes to what top-p wants."""
    with np.errstate(over="ignore"):
        scaled = np.sort((logits - logits.max()) / np.float32(temperature))[::-1]
    mass = np.exp(scaled[: top_k if 0 < top_k < logits.size else None].astype(np.float64)).cumsum()
    wanted = float(top_p) * mass[-1]
    return float(np.abs(mass - wanted).min() / wanted)


def params_of(columns: dict[str, np.ndarray]) -> SamplingParams:
    rows = np.zeros(columns["key"].size, SAMPLING_ROW)
    for name in ("key", *FILTERS):
        rows[name] = columns[name]
    return SamplingParams(rows, columns["output_positions"])


class Sampler:
    """Samples on the device."""

    def __init__(self, context: Context, upload: Upload, download: Download, empty: Empty) -> None:
        self.context, self.upload, self.download, self.empty = context, upload, download, empty

    def draw(self, logits: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
        ids = self.empty((logits.shape[0],), np.int32)
        host = params_of(columns)
        params = SamplingParams(self.upload(host.rows), self.upload(host.output_positions))
        sampling.sample(self.context, self.upload(logits), params, out_ids=ids)
        drawn: np.ndarray = self.download(ids)
        return drawn


@pytest.fixture
def sampler(context: Context, upload: Upload, download: Download, empty: Empty) -> Sampler:
    return Sampler(context, upload, download, empty)


def expect(logits: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
    ids = np.empty(logits.shape[0], np.int32)
    reference.sample(logits, params_of(columns), out_ids=ids)
    return ids


def assert_same_ids(ids: np.ndarray, expected: np.ndarray, logits: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    wrong = []
    for row in np.flatnonzero(ids != expected):
        options = {name: values[row].item() for name, values in columns.items()}
        on_bound = ids[row] >= 0 and options["top_p"] < 1 and distance_to_top_p(logits[row], **options) < 1e-9
        if not on_bound:
            wrong.append(f"row {row}: {ids[row]}, not {expected[row]}; {options}")
    assert not wrong, f"{len(wrong)} of {ids.size} rows\n" + "\n".join(wrong[:12])


def tile(columns: dict[str, np.ndarray], which: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[which] for name, values in columns.items()}


def test_sizes_are_those_of_the_kernels() -> None:
    text = read_source(SOURCE_DIRECTORY / "sampling" / "sampling_draw.cu")
    sizes = dict(re.findall(r"^constexpr int (\w+) = (\d+);", text, re.MULTILINE))
    for name in ("THREADS", "SLICE", "BINS", "CAPACITY"):
        assert int(sizes[name]) == getattr(sampling, name), name


@pytest.mark.gpu
@pytest.mark.sanitize("3-4099")
@pytest.mark.parametrize("vocab_size", [1, 5, 640, 4096, 4099, 32064, 50257, 151936, 201088])
@pytest.mark.parametrize("num_rows", [1, 3, 64, 256])
def test_rows_draw_what_the_reference_draws(sampler: Sampler, num_rows: int, vocab_size: int) -> None:
    rng = np.random.default_rng()
    num_different = min(num_rows, 256 if vocab_size < 5000 else 64 if vocab_size < 100_000 else 24)
    logits = make_rows(rng, num_different, vocab_size)
    columns = make_columns(rng, num_different, vocab_size)
    which = np.arange(num_rows) % num_different
    ids = sampler.draw(logits[which], tile(columns, which))
    expected = expect(logits, columns)
    assert_same_ids(ids, expected[which], logits[which], tile(columns, which))


@pytest.mark.gpu
@pytest.mark.sanitize
def test_every_combination_of_filters(sampler: Sampler) -> None:
    rng = np.random.default_rng()
    choices = ([0, 1e-30, 0.3, 1, 2], [0, 1, 17, 299, 300], [1, 1e-6, 0.5, 0.97], [0, 0.04, 1])
    grid = np.stack(np.meshgrid(*choices, indexing="ij")).reshape(4, -1)
    num_rows = grid.shape[1]
    columns = dict(zip(FILTERS, grid, strict=True)) | {
        "key": rng.integers(0, 2**63, num_rows).astype(np.uint64),
        "output_positions": np.arange(num_rows),
    }
    columns |= {name: columns[name].astype(SAMPLING_ROW[name]) for name in FILTERS}
    for logits in (rng.normal(size=(num_rows, 300)) * 3, np.round(rng.normal(size=(num_rows, 300)) * 2)):
        logits = logits.astype(np.float32)
        assert_same_ids(sampler.draw(logits, columns), expect(logits, columns), logits, columns)


@pytest.mark.gpu
def test_a_row_draws_the_same_alone_and_among_others(sampler: Sampler) -> None:
    rng = np.random.default_rng()
    logits, columns = make_rows(rng, 48, 20_011), make_columns(rng, 48, 20_011)
    together = sampler.draw(logits, columns)
    alone = [sampler.draw(logits[row : row + 1], tile(columns, np.array([row]))).item() for row in range(48)]
    assert together.tolist() == alone
    assert together.tolist() == sampler.draw(logits, columns).tolist()
    many = np.arange(1024) % 48
    np.testing.assert_array_equal(sampler.draw(logits[many], tile(columns, many)), together[many])


@pytest.mark.gpu
def test_no_rows_draw_nothing(sampler: Sampler) -> None:
    rng = np.random.default_rng()
    assert sampler.draw(np.empty((0, 100), np.float32), make_columns(rng, 0, 100)).size == 0


@pytest.mark.gpu
@pytest.mark.sanitize("500")
@pytest.mark.parametrize("num_entries", [0, 1, 500, 3000])
def test_adjustments_are_the_same_bits(context: Context, upload: Upload, download: Download, num_entries: int) -> None:
    rng = np.random.default_rng()
    num_rows, vocab_size = 7, 911
    logits = (rng.normal(size=(num_rows, vocab_size)) * 5).astype(np.float32)
    logits[rng.random(logits.shape) < 0.02] = -np.inf
    places = rng.choice(num_rows * vocab_size, num_entries, replace=False)
    bias = rng.normal(size=num_entries).astype(np.float32) * rng.integers(0, 2, num_entries)
    entries = {
        "rows": (places // vocab_size).astype(np.int32),
        "token_ids": (places % vocab_size).astype(np.int32),
        "bias": bias.astype(np.float32),
        "seen": rng.random(num_entries) < 0.5,
        "output_counts": rng.choice([0, 1, 3, 1000], num_entries).astype(np.int32),
        "banned": rng.random(num_entries) < 0.1,
    }
    penalties = {
        "repetition_penalty": rng.uniform(0.5, 2, num_rows).astype(np.float32),
        "presence_penalty": rng.uniform(-2, 2, num_rows).astype(np.float32),
        "frequency_penalty": rng.uniform(-2, 2, num_rows).astype(np.float32),
    }
    expected = logits.copy()
    reference.adjust_logits(expected, Adjustments(**entries, **penalties), out=expected)
    padding = {"rows": -1}
    padded = {
        name: np.concatenate([values, np.full(13, padding.get(name, 0), values.dtype)])
        for name, values in entries.items()
    }
    on_device = upload(logits)
    columns = {name: upload(values) for name, values in (padded | penalties).items()}
    sampling.adjust_logits(context, on_device, Adjustments(**columns), out=on_device)
    np.testing.assert_array_equal(download(on_device).view(np.uint32), expected.view(np.uint32))


@pytest.mark.gpu
@pytest.mark.sanitize("3-997", "2-32")
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 997, 8192, 8193, 32064, 151936, 201088, 262144])
@pytest.mark.parametrize("num_masks", [0, 1, 2, 3, 64])
def test_masks_leave_the_same_bits(
    context: Context, upload: Upload, download: Download, num_masks: int, vocab_size: int
) -> None:
    rng = np.random.default_rng()
    logits = make_rows(rng, num_masks + 2, vocab_size)
    rows = rng.permutation(num_masks + 2)[:num_masks].astype(np.int32)
    masks = rng.integers(0, 1 << 32, (num_masks, -(-vocab_size // 32)), dtype=np.uint32)
    masks[::3] *= rng.integers(0, 2, masks[::3].shape, dtype=np.uint32)  # whole words of zeros
    masks[1::3] |= np.uint32(0xFFFF00FF)
    on_device = upload(logits)
    sampling.mask_logits(context, on_device, upload(rows), upload(masks), out=on_device)
    expected = logits.copy()
    for row, mask in zip(rows, masks, strict=True):
        ids = np.arange(vocab_size)
        expected[row, (mask[ids // 32] >> (ids % 32).astype(np.uint32) & 1) == 0] = -np.inf
    np.testing.assert_array_equal(download(on_device).view(np.uint32), expected.view(np.uint32))


@pytest.mark.gpu
@pytest.mark.sanitize("5-640-*")
@pytest.mark.parametrize("num_top", [0, 1, 20])
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 5), (5, 640), (3, 151936), (64, 50257), (2, 262144)])
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
    shapes = {"out_logprobs": (num_rows,), "out_top_ids": (num_rows, num_top), "out_top_logprobs": (num_rows, num_top)}
    dtypes = {"out_logprobs": np.float32, "out_top_ids": np.int32, "out_top_logprobs": np.float32}
    expected = {name: np.empty(shape, dtypes[name]) for name, shape in shapes.items()}
    reference.top_log_probabilities(logits, ids, num_top, **expected)

    def compute(which: slice) -> dict[str, np.ndarray]:
        count = ids[which].size
        out = {name: empty((count, *shape[1:]), dtypes[name]) for name, shape in shapes.items()}
        sampling.top_log_probabilities(context, upload(logits[which]), upload(ids[which]), num_top, **out)
        return {name: download(array) for name, array in out.items()}

    results = compute(slice(None))
    np.testing.assert_array_equal(results["out_top_ids"], expected["out_top_ids"])
    for name in ("out_logprobs", "out_top_logprobs"):
        np.testing.assert_allclose(results[name], expected[name], atol=2e-6, rtol=2e-7)
    alone = compute(slice(0, 1))
    for name, values in results.items():
        assert alone[name].tobytes() == values[:1].tobytes()
