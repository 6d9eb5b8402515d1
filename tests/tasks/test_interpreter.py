"""What threads of the Celery process wait for."""

from __future__ import annotations

import gc
import sys

from tasks.interpreter import prepare_to_serve


def test_threads_wait_less_long_for_each_other_and_seldom_for_the_garbage_collector() -> None:
    before, thresholds, is_on, num_frozen = (
        sys.getswitchinterval(),
        gc.get_threshold(),
        gc.isenabled(),
        gc.get_freeze_count(),
    )
    try:
        gc.set_threshold(700)  # Python's own
        prepare_to_serve()
        assert sys.getswitchinterval() <= 0.001 < before
        assert gc.isenabled()
        assert gc.get_threshold()[0] > 5000
        assert gc.get_freeze_count() > num_frozen
    finally:
        sys.setswitchinterval(before)
        gc.set_threshold(*thresholds)
        if not is_on:
            gc.disable()
        if not num_frozen:
            gc.unfreeze()
