"""A process for texts where the system allows no thread that waits for it."""

from __future__ import annotations

import threading
from contextlib import closing

import psutil
import pytest

from orcd.errors import OrcdError
from tests.worker.text.test_threads import no_thread
from worker.text.chat_template import ChatTemplate
from worker.text.process.text_process import TextProcess

HI = [{"role": "user", "content": "Hi"}]


def test_that_it_cannot_be_started_is_our_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = psutil.Process().children()
    with closing(TextProcess(ChatTemplate("{{ messages[0].content }}"), wall_limit_s=60)) as process:
        with monkeypatch.context() as full:
            full.setattr(threading, "_start_new_thread", no_thread)
            with pytest.raises(OrcdError, match=r"cannot be started \(Resource temporarily unavailable\)"):
                process.render(HI)
        assert psutil.Process().children() == before
        assert process.render(HI) == "Hi"
