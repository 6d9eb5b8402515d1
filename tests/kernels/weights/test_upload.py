"""kernels.weights.upload: how transfers are cut to fit the buffers, and on a GPU that every byte arrives, and fast."""

from __future__ import annotations

import mmap
import tempfile
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.devices.cuda import CudaDevice
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.upload import PinnedBuffers, Transfer, Upload, cut
from tests.kernels.conftest import Download
from tests.kernels.probe import CopyParams

VECTOR_BYTES = 16  # that probe_copy moves at a time
FILE_BYTES = 3 << 30


def consume(_staging: DeviceArray, _start: int, _count: int) -> None: ...


def transfer(num_granules: int, granule: int) -> Transfer:
    return Transfer(np.zeros(num_granules * granule, np.uint8), granule, consume)


def test_transfers_are_cut_into_whole_granules_in_order_and_small_ones_share_a_buffer() -> None:
    transfers = [transfer(7, 300), transfer(0, 5), transfer(1, 1000), transfer(2000, 1), transfer(3, 100)]
    batches = [
        [(transfers.index(slice_.transfer), *slice_[1:]) for slice_ in slices] for slices in cut(transfers, 1024)
    ]
    assert batches == [
        [(0, 0, 3, 0)],
        [(0, 3, 3, 0)],
        [(0, 6, 1, 0)],
        [(2, 0, 1, 0)],
        [(3, 0, 1024, 0)],
        [(3, 1024, 976, 0)],
        [(4, 0, 3, 0)],
    ]
    small = [transfer(3, 100), transfer(1, 10), transfer(9, 100)]
    assert [[tuple(slice_)[1:] for slice_ in slices] for slices in cut(small, 1024)] == [
        [(0, 3, 0), (0, 1, 512), (0, 2, 768)],
        [(2, 7, 0)],
    ]


@pytest.mark.parametrize("bad", [Transfer(np.zeros(7, np.uint8), 2, consume), transfer(1, 101)])
def test_transfers_that_cannot_be_cut_are_a_bug(bad: Transfer) -> None:
    with pytest.raises(AssertionError):
        list(cut([bad], 100))


def transfer_to(context: Context, source: NDArray[np.uint8], granule: int, target: DeviceArray) -> Transfer:
    """Uploads ``source`` to ``target`` by a kernel that reads the staging memory."""

    def consume(staging: DeviceArray, start: int, count: int) -> None:
        assert staging.nbytes == count * granule
        params = CopyParams(
            source=staging.pointer, target=target.pointer + start * granule, size=staging.nbytes // VECTOR_BYTES
        )
        context.launch("probe", "probe_copy", 264, 256, params, SHIFT=1)

    return Transfer(source, granule, consume)


@pytest.mark.gpu
@pytest.mark.parametrize(("num_buffers", "buffer_bytes"), [(1, 4096), (3, 65536), (8, 1 << 20)])
def test_every_byte_arrives(
    num_buffers: int, buffer_bytes: int, device: CudaDevice, probes: Context, download: Download
) -> None:
    random = np.random.default_rng(num_buffers)
    sources = [random.integers(0, 256, size * 32, np.uint8) for size in (0, 1, 100, 4096, 12345, 99999)]
    targets = [device.weights.allocate(source.shape, np.uint8) for source in sources]
    granules = (32, 32, 64, 4096, 96, 32)
    transfers = [transfer_to(probes, *each) for each in zip(sources, granules, targets, strict=True)]
    reports: list[tuple[int, int]] = []
    buffers = PinnedBuffers(num_buffers, buffer_bytes)
    assert {buffers[index].nbytes for index in range(len(buffers))} == {buffer_bytes}
    before = device.memory_bytes()
    with Upload(probes, buffers) as upload:
        upload.run(transfers, lambda *report: reports.append(report))
        assert device.memory_bytes() <= before + (4 << 20), "the staging memory is scratch memory"
    assert probes.mark() == 0
    for source, target in zip(sources, targets, strict=True):
        np.testing.assert_array_equal(download(target), source)
    total = sum(source.size for source in sources)
    assert reports[-1] == (total, total) and reports == sorted(reports)


@pytest.mark.gpu
def test_whoever_waits_can_end_it(device: CudaDevice, probes: Context) -> None:
    source = np.zeros(64 << 20, np.uint8)
    target = device.weights.allocate(source.shape, np.uint8)

    def give_up(num_bytes: int, _total: int) -> None:
        if num_bytes > 8 << 20:
            raise InterruptedError

    with pytest.raises(InterruptedError), Upload(probes, PinnedBuffers(num_bytes=1 << 20)) as upload:
        upload.run([transfer_to(probes, source, 4096, target)], give_up)
    device.synchronise()


@pytest.mark.gpu
def test_the_last_report_is_that_all_has_arrived(device: CudaDevice, probes: Context) -> None:
    from cupy.cuda import runtime

    source = np.random.default_rng(2).integers(0, 256, 9 << 20, np.uint8)
    target = device.weights.allocate(source.shape, np.uint8)
    done = []

    def look(num_bytes: int, total: int) -> None:
        if num_bytes == total:
            done.append(runtime.streamQuery(device.stream.handle) == 0)

    with Upload(probes) as upload:
        upload.run([transfer_to(probes, source, 4096, target)], look)
    assert done == [True]


@pytest.mark.gpu
def test_a_mapped_file_is_uploaded_at_ten_gigabytes_a_second(device: CudaDevice, probes: Context) -> None:
    with tempfile.TemporaryFile() as file:
        slice_ = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
        for _ in range(FILE_BYTES // slice_.size):
            file.write(slice_.tobytes())
        file.flush()
        source = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
    target = device.weights.allocate(source.shape, np.uint8)
    half = source.size // 2
    transfers = [
        transfer_to(probes, source[:half], 4096, target.rows(0, half)),
        transfer_to(probes, source[half:], 4096, target.rows(half, source.size)),
    ]
    rates = []
    for _ in range(3):  # other processes may be busy
        start = time.perf_counter()
        with Upload(probes) as upload:
            opened = time.perf_counter()
            upload.run(transfers, lambda _bytes, _total: None)
        rates.append(source.size / (time.perf_counter() - opened) / 1e9)
        print(f"{rates[-1]:.1f} GB/s, {opened - start:.3f} s to open")
    np.testing.assert_array_equal(device.download(target.rows(source.size - slice_.size, source.size)), slice_)
    assert max(rates) > 5, "far below the 10 GB/s that a load wants"
