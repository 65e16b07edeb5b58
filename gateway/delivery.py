"""From running generations to one HTTP response: whole or streamed, cancelled when the client goes away.

A response begins with the first token, so that whatever fails before it has an honest status. What fails later is an
error event; a stream that ends without a finish reason did not finish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import trio
from msgspec import Struct
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from paceline.client.options import GenerateOptions
from paceline.client.results import Piece, Result
from paceline.gateway.connection import WriteChunk, chunk_writer
from paceline.gateway.errors import body_of, headers_of, status_of
from paceline.gateway.source import Source, account, headers
from paceline.gateway.writers import Event, Writer
from paceline.wire.errors import Cancelled, PacelineError

JSON, SSE = "application/json", "text/event-stream; charset=utf-8"


def json_response(body: Struct, status: int = 200, extra: Mapping[str, str] | None = None) -> Response:
    """A record as JSON."""
    return Response(msgspec.json.encode(body), status, dict(extra or {}), JSON)


def error_response(error: PacelineError) -> Response:
    """A typed error with its status and headers."""
    return json_response(body_of(error), status_of(error), headers_of(error))


@dataclass(slots=True, kw_only=True)
class Job:
    """One request's generations. `events`: tell of the ring. `after`: pieces up to this index are not sent again.
    `numbered`: events carry the index of their token, so that the stream can be resumed.
    """

    sources: Sequence[Source]
    writer: Writer
    streamed: bool
    events: bool = False
    after: int = -1
    numbered: bool = False
    on_piece: Callable[[int, Piece], None] = lambda choice, piece: None
    on_over: Callable[[Job], None] = lambda job: None
    extra: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[GenerateOptions] = ()
    """What each source was asked with; none of a resumed one, which was asked before."""
    results: list[Result | None] = field(default_factory=list)
    error: PacelineError | None = None
    complete: bool = False
    """Everything has been handed to the client's connection."""


class Delivery(Response):
    """The response. `on_over` is called exactly once, however it ends."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job
        self._job.results = [None] * len(job.sources)
        self._versions = [(-1, -1)] * len(job.sources)
        self._begun = False
        self._opening: list[Event] | None = None
        self._sending = trio.Lock() if len(job.sources) > 1 else None
        self._send: Send
        self._chunk: WriteChunk | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self._send, self._chunk = send, chunk_writer(scope)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                await self._deliver()
                nursery.cancel_scope.cancel()
        finally:
            for source in self._job.sources:
                source.cancel()
            self._job.on_over(self._job)

    async def _deliver(self) -> None:
        await self._drive()
        error, results = self._job.error, [result for result in self._job.results if result is not None]
        if error is not None:
            await self._fail(error)
        elif self._job.streamed:
            await self._emit(self._job.writer.close(results))
            await self._body(self._job.writer.closing, more=False)
        else:
            body = self._job.writer.whole(results, account(results[0]) if self._job.events else None)
            await self._whole(json_response(body, 200, {**headers(results), **self._job.extra}))
        self._job.complete = error is None

    async def _drive(self) -> None:
        """All choices to their ends; the first error ends all."""
        if len(self._job.sources) == 1:
            await self._choice(0, None)
            return
        async with trio.open_nursery() as nursery:
            for choice in range(len(self._job.sources)):
                nursery.start_soon(self._choice, choice, nursery.cancel_scope)

    async def _choice(self, choice: int, others: trio.CancelScope | None) -> None:
        source = self._job.sources[choice]
        try:
            while (piece := await source.receive()) is not None:
                await self._piece(choice, piece)
            result = source.result()
            if result.finish_reason == "cancelled":
                raise Cancelled("the gateway stopped this answer before its end", cure="ask again")
            self._job.results[choice] = result
            self._open()
            await self._emit(self._job.writer.end(choice, result))
        except PacelineError as error:
            self._job.error = self._job.error or error
            if others is not None:
                others.cancel()

    def _open(self) -> None:
        """Writers number their events: the opening is made before the first piece, and sent with it."""
        if self._opening is None:
            self._opening = self._job.writer.begin() if self._job.after < 0 else []

    async def _piece(self, choice: int, piece: Piece) -> None:
        job, source = self._job, self._job.sources[choice]
        self._open()
        job.on_piece(choice, piece)
        ride = None
        if job.events and job.streamed and source.version != self._versions[choice]:
            self._versions[choice] = source.version
            ride = account(source.result())
        events = job.writer.piece(choice, piece, ride, piece.timings if job.events else ())
        if piece.index > job.after:
            await self._emit(events, f"{piece.index}" if job.numbered else "")

    async def _emit(self, events: Sequence[Event], mark: str = "") -> None:
        if not self._job.streamed or (not events and self._begun):
            return
        data = b"".join([_encode(event) for event in events[:-1]]) + (_encode(events[-1], mark) if events else b"")
        if self._sending is None:
            await self._begin_and(data)
        else:
            async with self._sending:
                await self._begin_and(data)

    async def _begin_and(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            await self._start(200, SSE, {**self._ride(), **self._job.extra, "cache-control": "no-store"})
            data = b"".join(_encode(event) for event in self._opening or ()) + data
        if data:
            await self._body(data)

    def _ride(self) -> dict[str, str]:
        return headers([source.result() for source in self._job.sources])

    async def _fail(self, error: PacelineError) -> None:
        if not self._begun:
            await self._whole(error_response(error))
            return
        data = b"".join(_encode(event) for event in self._job.writer.failed(body_of(error)))
        await self._body(data, more=False)

    async def _whole(self, response: Response) -> None:
        await self._send(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        await self._body(bytes(response.body), more=False)

    async def _start(self, status: int, kind: str, extra: Mapping[str, str]) -> None:
        pairs = [("content-type", kind), *extra.items()]
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, data: bytes, *, more: bool = True) -> None:
        if more and self._chunk is not None:
            await self._chunk(data)
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _encode(event: Event, mark: str = "") -> bytes:
    name = f"event: {event.name}\n" if event.name else ""
    number = f"id: {mark}\n" if mark else ""
    return b"%b%bdata: %b\n\n" % (name.encode(), number.encode(), msgspec.json.encode(event.body))


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
    scope.cancel()
