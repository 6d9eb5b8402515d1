"""A gateway in this process, and the clients that call it."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import openai
import pytest
import uvicorn

from orcd.gateway.app import create_app
from orcd.gateway.settings import GatewaySettings
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.job_writer import MakeStore

StartGateway = Callable[..., str]
OpenSdk = Callable[..., openai.OpenAI]
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients: otherwise each loads the certificates of all authorities, which takes longer than most tests."""


@contextmanager
def running(settings: GatewaySettings) -> Iterator[str]:
    """Serve on a free port; gives the URL of the API."""
    config = uvicorn.Config(create_app(settings), port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def start_gateway(redis_url: str) -> Iterator[StartGateway]:
    """Starts gateways with these settings on the empty Redis."""
    with ExitStack() as gateways:
        yield lambda **settings: gateways.enter_context(
            running(GatewaySettings(**{"redis_url": redis_url, **settings}))
        )


@pytest.fixture
def url(start_gateway: StartGateway) -> str:
    return start_gateway()


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, verify=NO_TLS) as client:
        yield client


@pytest.fixture
def served_model(make_store: MakeStore) -> str:
    """A model that a worker says it serves, though nobody runs its jobs."""
    make_store().renew({}, is_ready=True)
    return "demo"


@pytest.fixture
def sdk(url: str, worker: AnsweringWorker, open_sdk: OpenSdk) -> openai.OpenAI:
    """OpenAI's SDK; a worker answers every job with the tokens `` 1 2 3``."""
    return open_sdk(url)


@pytest.fixture
def open_sdk() -> Iterator[OpenSdk]:
    """Opens OpenAI's SDK for a URL and a key; it tries nothing twice."""
    with ExitStack() as opened:

        def open_sdk(url: str, key: str = "none") -> openai.OpenAI:
            http = openai.DefaultHttpxClient(verify=NO_TLS)
            return opened.enter_context(
                openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60, http_client=http)
            )

        yield open_sdk
