"""One HTTP connection: hypercorn's, with a short way for the pieces of a streamed answer.

Hypercorn and h11 read the request, write the head and end the answer. In between, every piece would pass two state
machines, a lock, and two rounds of the scheduler, only to get a chunk's length in front: here it gets that and is
written, in one call. Knows sockets and chunks; no events, no tokens.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ConnectionState
from hypercorn.typing import Scope as HypercornScope
from starlette.types import ASGIApp, Receive, Scope, Send

EXTENSION = "paceline.chunk"
"""Where a scope offers the short way, in its ``extensions``."""

WriteChunk = Callable[[bytes], Awaitable[None]]


class Connection(TCPServer):
    """Await it. `app` is served until the other side goes, or `context` is terminated and the connection idle."""

    def __init__(self, app: ASGIApp, config: Config, context: WorkerContext, stream: trio.SocketStream) -> None:
        super().__init__(self._answer, config, context, ConnectionState({}), cast(Any, stream))
        self._app = app
        self._socket = stream.socket

    async def _answer(
        self,
        scope: HypercornScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        if scope["type"] == "http" and scope["http_version"] == "1.1" and scope["method"] != "HEAD":
            cast(dict[str, Any], scope["extensions"])[EXTENSION] = self._write_chunk
        await self._app(cast(Scope, scope), cast(Receive, receive), cast(Send, send))

    async def _write_chunk(self, data: bytes) -> None:
        """`data` as one chunk of an answer's body: after its ``http.response.start``, which names no length, and before
        its last ``http.response.body``. Waits only where the socket is full; what has gone wrong is told as ever, by
        ``http.disconnect``.
        """
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        try:
            sent = os.write(self._socket.fileno(), chunk)
        except OSError:
            sent = 0  # full, or gone: the long way waits, or finds out
        if sent < len(chunk):
            await self.protocol_send(RawData(data=chunk[sent:]))


def chunk_writer(scope: Scope) -> WriteChunk | None:
    """The short way, where the server has one for this request."""
    return cast(WriteChunk | None, scope.get("extensions", {}).get(EXTENSION))
