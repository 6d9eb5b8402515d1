"""``orcd gateway``: OpenAI's API over the queue."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from typing import Any

import click

from orcd.cli.command_line import ignore_signals_at_exit, leave
from orcd.errors import InvalidRequest
from orcd.settings import read_environment


@click.command()
@click.option("--host", metavar="H", help="Address to listen on; default: 127.0.0.1.")
@click.option("--port", type=int, metavar="N", help="Port to listen on; default: 8000.")
@click.option("--redis", "redis_url", metavar="URL", help="Redis to use; default: $ORCD_REDIS_URL.")
@click.option("--api-key-file", metavar="F", help="TOML file of the keys that callers need; default: anybody may call.")
@click.option("--files-dir", metavar="DIR", help="Folder, or URL for fsspec, of files, which all gateways share.")
def gateway(**options: Any) -> None:
    """Answer OpenAI's API over the queue: chat, completions, responses.

    It keeps nothing of its own: any number run side by side, and a client that was cut off goes on with another one.

    \b
      orcd gateway --port 8000
      curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "Write a haiku about rain"}]}'

    Docs: docs/gateway.md.
    """
    missing = [package for package in ("prometheus_client", "starlette", "uvicorn") if find_spec(package) is None]
    if missing:
        raise InvalidRequest(f"orcd gateway needs {', '.join(missing)}; run: pip install 'orcd[gateway]'")
    for number in (signal.SIGTERM, signal.SIGINT):  # until uvicorn listens; once it has stopped it raises them again
        signal.signal(number, leave)
    ignore_signals_at_exit()
    from orcd.gateway.server import serve
    from orcd.gateway.settings import GatewaySettings

    serve(read_environment(GatewaySettings, **options))


COMMANDS = (gateway,)
