"""A gateway as people start it, for tests that send it signals."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType


class GatewayProcess:
    """``orcd gateway`` on a free port, with these further arguments; ``url`` is the API's. Use it in a with block.

    ``errors`` is what it has said to standard error. ``program`` stands for ``python -m orcd``.
    """

    def __init__(self, redis_url: str, *arguments: str, program: Sequence[str] = ("-m", "orcd")) -> None:
        command = [sys.executable, "-P", *program, "gateway", "--redis", redis_url, "--port", "0", *arguments]
        self._errors = tempfile.TemporaryFile("a+")  # noqa: SIM115 - closed on exit
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        self.url = ""

    def __enter__(self) -> GatewayProcess:
        self.process.__enter__()
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.__exit__(kind, error, trace)
        self._errors.close()

    @property
    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()
