"""Wall clocks of chosen processes that can be moved without being root: a small library is preloaded into them."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


class ClockShift:
    """Compiles the library into ``folder``. ``why_not`` says why that was not possible; '' if it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "clock_shift.so"
        self.why_not = self._compile()

    def environment(self, name: str) -> dict[str, str]:
        """What a process needs in its environment to follow the clock ``name``."""
        if self.why_not:
            return {}
        path = self._folder / f"clock-{name}"
        path.write_bytes(struct.pack("=q", 0))
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(path)}

    def shift(self, name: str, seconds: int) -> None:
        """Set a clock to so many seconds from the real one."""
        with (self._folder / f"clock-{name}").open("r+b") as file:
            file.write(struct.pack("=q", seconds))

    def _compile(self) -> str:
        compiler = shutil.which("cc")
        if sys.platform != "linux" or compiler is None:
            return "a clock of a process can only be moved on Linux with a C compiler (cc)"
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE), "-ldl"]
        ran = subprocess.run(command, capture_output=True, text=True)
        return "" if ran.returncode == 0 else f"cc failed: {ran.stderr.strip()[:200]}"
