"""Call a gateway with what its OpenAPI document allows and forbids, and compare its answers with the document.

    python -m tests.orcd.gateway.api_fuzz [--seconds 60] [--seed 1]

Starts a Redis, a worker with the model that ships on the CPU device, and a gateway; then schemathesis makes the calls.
``schemathesis.toml`` beside this file says what it checks. Above all no answer is a 500, and the gateway logs no error.
Exit code 1 if a check failed; each failure is printed with a command that repeats its call.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tasks.local.redis_server import RedisServer
from tests.conftest import DEMO_MODEL
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.tasks.worker_process import WorkerProcess

CONFIG = Path(__file__).with_name("schemathesis.toml")
CONTEXT_LENGTH = "64"
"""So that answers without a limit are short."""
ROUNDS = ("--phases", "fuzzing,stateful", "--max-examples", "5")
"""A few calls of every operation, then chains of operations, again and again until the time is over. The phase that
goes through the bounds of every field would spend all of it on the first operations."""
NO_HTTP = "WARNING:  Invalid HTTP request received."
"""What uvicorn says of the NULL bytes that schemathesis sends to see whether servers take them."""
NO_FILE = "another has to run it"
"""The end of what the gateway says of a batch whose input file was deleted before it began."""


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What is run; exits with 2 for wrong usage."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.orcd.gateway.api_fuzz", description=description)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = read_arguments(argv)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orcd-api-fuzz-")))
        server = stack.enter_context(RedisServer())
        stack.enter_context(WorkerProcess(server.url, DEMO_MODEL, folder, ORCD_CONTEXT_LENGTH=CONTEXT_LENGTH))
        gateway = stack.enter_context(GatewayProcess(server.url, "--files-dir", str(folder)))
        limits = (*ROUNDS, "--max-time", str(arguments.seconds), "--seed", str(arguments.seed))
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", *limits]
        done = subprocess.run([*command, f"{gateway.url}/openapi.json"], cwd=folder)
        errors = [line for line in gateway.errors.splitlines() if line != NO_HTTP and not line.endswith(NO_FILE)]
    print("\n".join(errors))
    return done.returncode or int(bool(errors))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
