"""Runs a gateway on a port, in the caller's trio run."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from paceline.client.core import ClientCore
from paceline.gateway.app import gateway
from paceline.gateway.config import GatewayConfig
from paceline.gateway.connection import Connection
from paceline.gateway.spans import configured
from paceline.wire.errors import InvalidRequest

BACKLOG = 128


async def serve(core: ClientCore, config: GatewayConfig, *, started: Callable[[str], None]) -> None:
    """Until cancelled. `started` gets the URL once requests are answered. Raises InvalidRequest where it cannot listen.

    Use inside ``async with core.run()``, for example ``nursery.start_soon(partial(serve, core, config, started=…))``.
    """
    with _listening(config) as listener:
        spans = configured()
        made = gateway(core, config, spans)
        connection = partial(Connection, made.app, _server(), WorkerContext(None))
        started(_url(config.host, listener.getsockname()[1]))
        try:
            async with trio.open_nursery() as nursery:
                if made.mirror is not None:
                    nursery.start_soon(made.mirror.run)
                await trio.serve_listeners(connection, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])
        finally:
            if spans is not None:
                spans.close()


def _server() -> Config:
    server = Config()
    server.accesslog = None
    server.errorlog = logging.getLogger("paceline.gateway")
    server.loglevel = "WARNING"
    server.h11_max_incomplete_size = 64 * 1024
    server.include_server_header = False
    return server


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _listening(config: GatewayConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        cure = "choose another with --port, or 0 for any free one"
        raise InvalidRequest(f"cannot listen on {config.host}:{config.port}: {error}", cure=cure) from error
    return listener
