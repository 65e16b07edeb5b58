"""The short way of a streamed answer's pieces: the same bytes as the long way, whoever reads and however slowly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import h11
import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from starlette.types import ASGIApp, Receive, Scope, Send

from paceline.gateway.connection import Connection, chunk_writer

PIECES = [b"one", b"two" * 1000, b"\r\n0\r\n\r\n", b"four"]
MUCH = [bytes([number]) * 65536 for number in range(200)]


def saying(pieces: list[bytes], ways: list[bool]) -> ASGIApp:
    """Answers with `pieces` by the short way where there is one; `ways` gets whether there was."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        write = chunk_writer(scope)
        ways.append(write is not None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in pieces:
            if write is None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            else:
                await write(piece)
        await send({"type": "http.response.body", "body": b"end"})

    return app


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[trio.SocketStream]:
    """A client of a server that serves `app`."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        connection = partial(Connection, app, Config(), WorkerContext(None))
        nursery.start_soon(partial(trio.serve_listeners, connection, listeners))
        async with await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1]) as stream:
            yield stream
        nursery.cancel_scope.cancel()


async def answer(stream: trio.SocketStream, client: h11.Connection) -> bytes:
    """The body of one GET."""
    asked = client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    assert asked is not None
    await stream.send_all(asked + (client.send(h11.EndOfMessage()) or b""))
    body = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            client.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Data):
            body += event.data
    return body


async def test_chunks_arrive_whole_and_the_connection_serves_on() -> None:
    ways: list[bool] = []
    async with connected(saying(PIECES, ways)) as stream:
        client = h11.Connection(h11.CLIENT)
        for _ in range(3):
            assert await answer(stream, client) == b"".join(PIECES) + b"end"
            client.start_next_cycle()
    assert ways == [True] * 3


async def test_a_full_socket_is_waited_for() -> None:
    ways: list[bool] = []
    async with connected(saying(MUCH, ways)) as stream:
        assert await answer(stream, h11.Connection(h11.CLIENT)) == b"".join(MUCH) + b"end"
    assert ways == [True]


@pytest.mark.parametrize("head", ["GET / HTTP/1.0", "HEAD / HTTP/1.1"])
async def test_where_no_chunks_may_be_sent_none_are(head: str) -> None:
    ways: list[bool] = []
    async with connected(saying(PIECES, ways)) as stream:
        await stream.send_all(f"{head}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        said = b"".join([part async for part in stream])
    body = said.partition(b"\r\n\r\n")[2]
    assert body == (b"" if head.startswith("HEAD") else b"".join(PIECES) + b"end")
    assert ways == [False]


async def test_an_application_is_told_that_its_reader_has_gone() -> None:
    told = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        write = chunk_writer(scope)
        assert write is not None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await write(b"piece")
        while (await receive())["type"] != "http.disconnect":
            pass
        await write(b"to nobody")
        told.set()

    async with connected(app) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"piece" not in await stream.receive_some(65536):
            pass
        await stream.aclose()
        with trio.fail_after(5):
            await told.wait()
