"""The ASGI application: one table of routes, what guards them, and what an error looks like."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline.client.core import ClientCore
from paceline.client.mirror import Mirror
from paceline.gateway import replies, requests
from paceline.gateway.catalogue import Catalogue
from paceline.gateway.config import GatewayConfig
from paceline.gateway.delivery import error_response, json_response
from paceline.gateway.errors import NotHere, WrongMethod
from paceline.gateway.gate import Gate
from paceline.gateway.generating import Generating
from paceline.gateway.metrics import Metrics
from paceline.gateway.openapi import Operation, document
from paceline.gateway.responses_writer import RESPONSE_EVENTS
from paceline.gateway.spans import Spans
from paceline.gateway.swarm_map import SwarmMap
from paceline.wire.errors import InternalError, InvalidRequest, ModelNotFound, PacelineError

Endpoint = Callable[[Request], Awaitable[Response]]
GENERATING_ERRORS = (400, 404, 413, 415, 429, 500, 502, 503)
STREAM_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
MODEL_ID = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
LAST_EVENT = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "integer", "minimum": -1}}
PAGE = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "main.js": "text/javascript; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "ring.js": "text/javascript; charset=utf-8",
}
_log = logging.getLogger("paceline.gateway")

PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Gateway:
    """`app`: what a server runs. `routes` and `operations` come from one table, so the schema is true to the code."""

    app: ASGIApp
    metrics: Metrics
    operations: tuple[Operation, ...]
    mirror: Mirror | None
    """To be run beside the app, where there is one."""


def gateway(core: ClientCore, config: GatewayConfig, spans: Spans | None = None) -> Gateway:
    """A gateway over `core`, for use inside `core.run()`. `spans`: where answers are told of to a collector."""
    gate, metrics = Gate(config), Metrics(core.frontiers.lags)
    catalogue = Catalogue(core, int(time.time()))
    mirror = Mirror(core, config.mirror, metrics.mirror) if config.mirror else None
    table = [
        *_generating(Generating(core, config, gate, catalogue, metrics, spans, mirror)),
        *_questions(gate, catalogue, SwarmMap(core, config.swarm_cache_s), metrics),
    ]
    operations = tuple(operation for operation, _ in table)
    schema = msgspec.json.encode(document(operations, metadata.version("paceline")))

    async def openapi(request: Request) -> Response:
        return Response(schema, media_type="application/json")

    routes = [Route(o.path, endpoint, methods=[o.method]) for o, endpoint in table]
    routes += [Route("/openapi.json", openapi), Route("/", page), Route("/static/{name}", page)]
    handlers: dict[Any, Any] = {PacelineError: _typed, HTTPException: _http, Exception: _bug}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Gateway(_Counting(app, metrics), metrics, operations, mirror)


def _generating(generating: Generating) -> list[tuple[Operation, Endpoint]]:
    def operation(path: str, summary: str, body: Any, reply: Any, *chunks: Any) -> Operation:
        return Operation(
            path=path, method="POST", summary=summary, body=body, reply=reply, chunks=chunks, errors=GENERATING_ERRORS
        )

    chat = operation(
        "/v1/chat/completions",
        "Answer a conversation",
        requests.ChatRequest,
        replies.ChatCompletion,
        replies.ChatChunk,
    )
    text = operation(
        "/v1/completions",
        "Continue a text",
        requests.CompletionRequest,
        replies.TextCompletion,
        replies.TextCompletion,
    )
    responses = operation(
        "/v1/responses",
        "Answer (Responses API, text only)",
        requests.ResponsesRequest,
        replies.ResponsesReply,
        *RESPONSE_EVENTS,
    )
    resume = Operation(
        path="/paceline/streams/{id}",
        method="GET",
        summary="Resume a cut-off stream after the token that Last-Event-ID names",
        media="text/event-stream",
        parameters=(STREAM_ID, LAST_EVENT),
        errors=(400, 404, 429, 503),
    )
    return [
        (chat, generating.chat),
        (text, generating.completions),
        (responses, generating.responses),
        (resume, generating.resume),
    ]


def _questions(gate: Gate, catalogue: Catalogue, swarm: SwarmMap, metrics: Metrics) -> list[tuple[Operation, Endpoint]]:
    async def models(request: Request) -> Response:
        gate.meter(request)
        return json_response(replies.ModelList(await catalogue.cards()))

    async def model(request: Request) -> Response:
        gate.meter(request)
        name = request.path_params["model"]
        card = next((card for card in await catalogue.cards() if card.id == name), None)
        if card is None:
            raise ModelNotFound(f"no node serves {name!r}")
        return json_response(card)

    async def swarm_now(request: Request) -> Response:
        gate.meter(request)
        return Response(msgspec.json.encode(await swarm.now()), media_type="application/json")

    async def prometheus(request: Request) -> Response:
        gate.meter(request)
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    async def health(request: Request) -> Response:
        return json_response(replies.Health("ok", metrics.running))

    def get(path: str, summary: str, **more: Any) -> Operation:
        return Operation(path=path, method="GET", summary=summary, **more)

    return [
        (get("/v1/models", "Models that the swarm serves", reply=replies.ModelList), models),
        (
            get("/v1/models/{model}", "One model", reply=replies.ModelCard, parameters=(MODEL_ID,), errors=(404,)),
            model,
        ),
        (get("/paceline/swarm", "The swarm now: nodes, layers, links, load"), swarm_now),
        (get("/metrics", "Prometheus metrics", media="text/plain"), prometheus),
        (get("/healthz", "The gateway runs", reply=replies.Health, guarded=False), health),
    ]


# --- the page -----------------------------------------------------------------------------------------------------


@cache
def _asset(name: str) -> bytes:
    return (files("paceline.gateway") / "static" / name).read_bytes()


async def page(request: Request) -> Response:
    """The web page's files."""
    name = request.path_params.get("name", "index.html")
    if name not in PAGE:
        raise NotHere(f"no file {name!r}")
    return Response(_asset(name), headers=PAGE_HEADERS, media_type=PAGE[name])


# --- errors and counts --------------------------------------------------------------------------------------------


async def _typed(request: Request, error: PacelineError) -> Response:
    _log.info("refused", {"path": request.url.path, "code": error.code})
    return error_response(error)


async def _http(request: Request, error: HTTPException) -> Response:
    what = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return error_response(NotHere(f"{what}: no such path", cure="see /openapi.json"))
    if error.status_code == 405:
        response = error_response(WrongMethod(f"{what}: no such method", cure="see /openapi.json"))
        response.headers.update(error.headers or {})
        return response
    return error_response(InvalidRequest(f"{what}: {error.detail}"))


async def _bug(request: Request, error: Exception) -> Response:
    return error_response(InternalError("a bug in the gateway: its log says where", cure="report it"))


class _Counting:
    """ASGI middleware: requests by endpoint and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(endpoint_of(scope["path"]), str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)


def endpoint_of(path: str) -> str:
    """A label of few values: ids and model names are left out, and paths that nobody serves are one."""
    known = re.match(r"/v1/(chat/completions|completions|responses|models)|/paceline/(swarm|streams)|/metrics", path)
    if known:
        return known[0]
    return path if path in ("/", "/healthz", "/openapi.json") else "/static" if path.startswith("/static/") else "other"
