"""kernels.ops.sampling against its NumPy reference: the same ids, whatever the batch."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

import kernels.reference.sampling as reference
from kernels.batch import (
    ANY_ID,
    GREEDY_ROW,
    SAMPLING_ROW,
    LogitEdits,
    SamplingParams,
    decode_only_id,
    encode_only_id,
)
from kernels.logit_edits import EditResetList, EditResets, allocate_edits, count_tokens
from kernels.ops import sampling
from kernels.runtime.compiler import SOURCE_DIRECTORY, read_source
from kernels.runtime.launcher import Context
from kernels.runtime.memory import pinned
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


def greedy_rows(num_rows: int) -> np.ndarray:
    return np.frombuffer(GREEDY_ROW * num_rows, SAMPLING_ROW).copy()


def params_of(columns: dict[str, np.ndarray]) -> SamplingParams:
    rows = greedy_rows(columns["key"].size)
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
        host_ids = pinned(ids.shape, np.int32)
        sampling.sample(self.context, self.upload(logits), params, out_ids=ids, host_ids=host_ids)
        drawn: np.ndarray = self.download(ids)
        assert (host_ids == drawn).all()
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
@pytest.mark.parametrize("vocab_size", [1, 5, 640, 4096, 4099, 32064, 50257, 151936, 201088, 262208])
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


def random_edits(rng: np.random.Generator, rows: np.ndarray, vocab_size: int, num_tokens: int) -> EditResetList:
    """Edits of three of four rows, each of another kind; what a row is to say of them is written to ``rows``."""
    resets = EditResetList()
    edit_rows = rng.permutation(rows.size)
    for number, (row, edit_row) in enumerate(zip(rows, edit_rows, strict=True)):
        if number % 4 == 3:
            continue
        prompt, output = (rng.integers(0, vocab_size, rng.integers(num_tokens + 1)).tolist() for _ in range(2))
        output += output[:1] * 40
        some = rng.permutation(vocab_size)[: min(vocab_size // 2, 300)].tolist() if number % 2 else []
        biases = {each: -np.inf if rng.random() < 0.1 else float(np.float32(rng.normal() * 5)) for each in some}
        banned = rng.permutation(vocab_size)[: min(vocab_size - 1, 5)].tolist() if number % 4 < 2 else []
        resets.put(int(edit_row), count_tokens(prompt, output), biases, banned)
        row["edit_row"], row["num_biases"], row["num_banned"] = edit_row, len(biases), len(banned)
        row["min_tokens"] = rng.integers(0, 6)
        row["repetition_penalty"] = rng.uniform(0.5, 2)
        row["presence_penalty"], row["frequency_penalty"] = rng.uniform(-2, 2, 2)
    return resets


@pytest.mark.gpu
@pytest.mark.sanitize("5-911")
@pytest.mark.parametrize("vocab_size", [2, 911, 4096, 32064, 50257, 151936])
@pytest.mark.parametrize("num_rows", [1, 5, 33])
def test_edits_leave_the_same_bits_and_draws_are_counted(
    context: Context, upload: Upload, download: Download, empty: Empty, num_rows: int, vocab_size: int
) -> None:
    rng = np.random.default_rng()
    columns = make_columns(rng, num_rows, vocab_size)
    columns["output_positions"] = rng.integers(0, 8, num_rows)
    host = params_of(columns)
    resets = random_edits(rng, host.rows, vocab_size, num_tokens=min(vocab_size, 700)).arrays()
    memory = SimpleNamespace(allocate=lambda shape, dtype: np.full(shape, 9, dtype))
    edits = allocate_edits(memory, num_rows, vocab_size, max_biases=400)
    edits.biases["token_id"] = 0
    on_device = LogitEdits(upload(edits.counts), upload(edits.biases))
    reference.reset_edits(edits, resets)
    names = ("resets", "counts", "biases")
    sampling.reset_edits(context, on_device, EditResets(**{name: upload(getattr(resets, name)) for name in names}))
    edited = host.rows["edit_row"][host.rows["edit_row"] >= 0]
    for _ in range(3):
        logits = (rng.normal(size=(num_rows, vocab_size)) * 5).astype(np.float32)
        logits[rng.random(logits.shape) < 0.02] = -np.inf
        logits_there, ids = upload(logits), empty((num_rows,), np.int32)
        params = SamplingParams(upload(host.rows), upload(host.output_positions), on_device)
        sampling.sample(context, logits_there, params, out_ids=ids)
        drawn = download(ids)
        reference.edit_logits(logits, replace(host, edits=edits))
        np.testing.assert_array_equal(download(logits_there).view(np.uint32), logits.view(np.uint32))
        expected = np.empty(num_rows, np.int32)
        reference.sample(logits, host_without_edits(host), out_ids=expected)
        assert_same_ids(drawn, expected, logits, columns)
        reference.count(drawn, replace(host, edits=edits))
        np.testing.assert_array_equal(download(on_device.counts)[edited], edits.counts[edited])
        host.output_positions[:] += 1


def host_without_edits(host: SamplingParams) -> SamplingParams:
    rows = host.rows.copy()
    rows["edit_row"] = -1
    return SamplingParams(rows, host.output_positions)


@pytest.mark.gpu
@pytest.mark.sanitize("3-997", "2-32")
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 997, 8192, 8193, 32064, 151936, 201088, 262144])
@pytest.mark.parametrize("num_masks", [1, 2, 3, 64])
def test_masks_leave_the_same_bits(
    context: Context, upload: Upload, download: Download, num_masks: int, vocab_size: int
) -> None:
    rng = np.random.default_rng()
    logits = make_rows(rng, num_masks + 4, vocab_size)
    numbers = rng.integers(0, num_masks, num_masks + 4).astype(np.int32)
    numbers[2::5] = ANY_ID
    numbers[1::4] = encode_only_id(int(rng.integers(vocab_size)))
    numbers[0] = encode_only_id((1 << 31) - 2)
    masks = rng.integers(0, 1 << 32, (num_masks, -(-vocab_size // 32)), dtype=np.uint32)
    masks[::3] *= rng.integers(0, 2, masks[::3].shape, dtype=np.uint32)  # whole words of zeros
    masks[1::3] |= np.uint32(0xFFFF00FF)
    on_device = upload(logits)
    sampling.mask_logits(context, on_device, upload(numbers), upload(masks), out=on_device)
    expected = logits.copy()
    for row, number in enumerate(numbers.tolist()):
        ids = np.arange(vocab_size)
        if number >= 0:
            expected[row, (masks[number][ids // 32] >> (ids % 32).astype(np.uint32) & 1) == 0] = -np.inf
        elif number != ANY_ID:
            expected[row, ids != decode_only_id(number)] = -np.inf
    np.testing.assert_array_equal(download(on_device).view(np.uint32), expected.view(np.uint32))
