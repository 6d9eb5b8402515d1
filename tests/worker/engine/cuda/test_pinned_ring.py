import numpy as np
import pytest

from kernels.errors import CudaFailure
from tests.worker.engine.cuda.late_device import LateDevice
from worker.engine.cuda.pinned_ring import NUM_BUFFERS, DownloadRing, UploadRing


def test_uploads_arrive_in_order_and_a_buffer_is_not_written_before_it_was_copied():
    device = LateDevice()
    ring = UploadRing(device, 4, timeout_s=1)
    targets = [np.zeros(4, np.uint8) for _ in range(3 * NUM_BUFFERS)]
    for number, target in enumerate(targets):
        ring.take()[:2] = number
        ring.send(target[:2])
    device.run_until(len(targets))
    assert [target.tolist() for target in targets] == [[number, number, 0, 0] for number in range(len(targets))]


def test_downloads_are_read_as_they_were_when_they_were_fetched():
    device = LateDevice()
    ring = DownloadRing(device, 4)
    source = np.zeros(3, np.uint8)
    downloads = []
    for number in range(NUM_BUFFERS):
        device.enqueue(lambda number=number: source.fill(number))
        downloads.append(ring.fetch(source))
    assert [download.read(1).tolist() for download in downloads] == [[number] * 3 for number in range(NUM_BUFFERS)]


def test_a_device_that_hangs_is_not_waited_for_longer_than_was_said():
    device = LateDevice()
    uploads, downloads = UploadRing(device, 4, timeout_s=1), DownloadRing(device, 4)
    target = np.zeros(4, np.uint8)
    for _ in range(NUM_BUFFERS):
        uploads.take()
        uploads.send(target)
    download = downloads.fetch(target)
    device.hangs = True
    with pytest.raises(CudaFailure, match="not done after 1 s"):
        uploads.take()
    with pytest.raises(CudaFailure, match="not done after 2 s"):
        download.read(2)
