"""The ASGI application: routes, errors, and what goes around every request."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
import redis.asyncio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import orcd.store.broker  # noqa: F401 - Celery is imported now, and not while the first request waits
from orcd.async_client import AsyncClient
from orcd.errors import OrcdError, places
from orcd.gateway import models
from orcd.gateway.answers import generation, responses
from orcd.gateway.api_error import ApiError, stopping
from orcd.gateway.api_keys import ApiKeys
from orcd.gateway.batches import batches
from orcd.gateway.batches import files as file_endpoints
from orcd.gateway.batches.batch_runner import BatchRunner
from orcd.gateway.batches.batch_store import BatchStore
from orcd.gateway.batches.file_store import FileStore
from orcd.gateway.endpoint import Call, Gateway, endpoint, json_response
from orcd.gateway.metrics import Metrics
from orcd.gateway.openapi import openapi
from orcd.gateway.settings import GatewaySettings
from orcd.store import schema
from orcd.store.commands.redis_script import AsyncRedisScript
from orcd.store.redis_address import RedisAddress
from orcd.store.redis_connection import connect_async, explain

log = logging.getLogger("orcd.gateway")


def create_app(settings: GatewaySettings) -> Starlette:
    """The gateway as an application for an ASGI server.

    Raises `InvalidRequest` for a key file, or a URL of files, that cannot be used.
    """
    keys = ApiKeys.load(settings)
    files = FileStore.at(settings.files_dir) if settings.files_dir else None

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connection = connect_async(settings)
        async with connection, AsyncClient(settings.redis_url) as client:
            prefix = settings.key_prefix
            store = BatchStore(connection, prefix, settings.job_ttl_s)
            scripts = {
                name: AsyncRedisScript(connection, schema.script(name, prefix)) for name in ("annotate", "delete")
            }
            app.state.gateway = Gateway(settings, keys, client, connection, scripts, store, files)
            async with _running_batches(settings, store, files):
                yield

    routes = [
        Route("/health", health),
        Route("/v1/openapi.json", openapi),
        Route("/v1/models", models.list_models),
        Route("/v1/models/{model:path}", models.retrieve_model),
        Route("/v1/chat/completions", generation.chat, methods=["POST"]),
        Route("/v1/completions", generation.completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        *responses.ROUTES,
        *file_endpoints.ROUTES,
        *batches.ROUTES,
    ]
    metrics = Metrics(routes)
    middleware = [Middleware(Outermost, metrics)]
    if settings.cors_origins:
        origins = [origin.strip() for origin in settings.cors_origins.split(",")]
        middleware.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    return Starlette(
        routes=[*routes, Route("/metrics", metrics.show)],
        middleware=middleware,
        exception_handlers={
            ApiError: answer_error,
            OrcdError: answer_error,
            redis.RedisError: answer_error,
            HTTPException: answer_error,
        },
        lifespan=lifespan,
    )


@asynccontextmanager
async def _running_batches(
    settings: GatewaySettings, store: BatchStore, files: FileStore | None
) -> AsyncIterator[None]:
    """Run batches meanwhile, if this gateway has a place for their files."""
    if files is None:
        yield
        return
    runner = asyncio.create_task(BatchRunner(settings, store, files).run())
    yield
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)


async def health(request: Request) -> Response:
    """Whether this gateway reaches its Redis; for those who watch over it, without a key."""
    gateway: Gateway = request.app.state.gateway
    await gateway.redis.ping()
    return PlainTextResponse("ok\n")


@endpoint
async def embeddings(_call: Call) -> Response:
    """Not there yet."""
    raise ApiError(501, "embeddings are not supported; orcd generates text", code="not_supported")


async def answer_error(request: Request, error: Exception) -> Response:
    """An error as OpenAI's API says it."""
    if isinstance(error, redis.RedisError):
        error = explain(error, RedisAddress.parse(request.app.state.gateway.settings.redis_url))
    if isinstance(error, OrcdError):
        error = ApiError.of(error)
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            headers["allow"] = _methods(request)
        error = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail.lower()}")
    assert isinstance(error, ApiError), "no other is registered"
    return json_response(error.body, error.status, {**headers, **error.headers})


def _methods(request: Request) -> str:
    """The methods of all routes with the path of a request."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


class Outermost:
    """Counts requests, gives every answer an ``x-request-id``, and answers where the code around here has failed."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Starlette redirects these, to http, with the key and all, also where a proxy in front ends TLS.
        scope["path"] = scope["path"].rstrip("/") or "/"
        await self._metrics(self._answer, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(16)
        has_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # the time is over that the server gives to answers on their way when it stops
            if not has_begun:
                await _failed(stopping())(scope, receive, send_with_id)
        except Exception as error:  # its text may hold a prompt: the server would log it
            log.error("request %s: %s at %s", request_id, type(error).__name__, " ".join(places(error)[-5:]))
            if not has_begun:
                failure = ApiError(500, "the gateway failed; its log has the place", code="internal")
                await _failed(failure)(scope, receive, send_with_id)


def _failed(error: ApiError) -> Response:
    return json_response(error.body, error.status, dict(error.headers))
