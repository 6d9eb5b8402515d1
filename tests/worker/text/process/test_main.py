"""``python -m worker.text.process``, as its parent and as a person starts it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

from worker.text.process import frames

COMMAND = (sys.executable, "-P", "-m", "worker.text.process")


def test_without_a_socket_it_says_what_it_is_for() -> None:
    ended = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "a worker starts this process by itself" in ended.stderr


def test_it_ends_with_its_parent_and_not_by_a_signal_that_both_get() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = subprocess.Popen([*COMMAND, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
        ours.sendall(frames.encode(frames.Start(None)))
        assert frames.receive_call  # the answer below says that it is there
        assert ours.recv(4)
        for number in (signal.SIGINT, signal.SIGTERM):
            child.send_signal(number)
    assert child.wait(60) == 0
