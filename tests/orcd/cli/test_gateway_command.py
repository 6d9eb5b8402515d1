from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "uvicorn" else real(name, *rest)
from orcd.cli.main import main
sys.argv = ["orcd", "gateway"]
main()
"""


def test_without_its_packages_the_gateway_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "orcd: INVALID_REQUEST: orcd gateway needs uvicorn; run: pip install 'orcd[gateway]'\n"
