"""The exchange protocol over libp2p streams: one long-lived stream per member called, one request on it at a time.

Knows framing (u32 length, big-endian, then the bytes; one write each), deadlines and limits. Refuses to know what the
bytes mean. A stream whose call was cancelled or failed is reset and forgotten, so answers are never mixed up.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from paceline.dht.exchange import MAX_EXCHANGE_BYTES, PROTOCOL
from paceline.net.host import Libp2pTransport
from paceline.net.streams import HostStream
from paceline.wire.errors import DeadlineExceeded, PacelineError, PeerUnavailable, ProtocolViolation
from paceline.wire.messages import PeerAddress

CALL_TIMEOUT_S = 5.0
"""Opening a stream, or one request and its answer."""

IDLE_S = 120.0
"""A served stream that asks nothing for this long is ended."""

MAX_STREAMS = 256
"""Streams kept open to members called, and streams served."""

MAX_STREAMS_PER_PEER = 4
RESET_S = 1.0

_LENGTH = struct.Struct(">I")

Answer = Callable[[str, bytes], bytes]
"""(asking peer, request) → answer; PacelineError ends the stream."""


@dataclass
class _Line:
    """The way to one member: its stream while it lives, and whose turn it is."""

    turn: trio.Lock = field(default_factory=trio.Lock)
    stream: HostStream | None = None


class StreamCalls:
    """`membership.Calls` over a host, and the serving side of it."""

    def __init__(self, transport: Libp2pTransport, answer: Answer) -> None:
        self.counts: Counter[str] = Counter()
        self._transport = transport
        self._answer = answer
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._served: Counter[str] = Counter()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve the protocol; on leaving, no more, and every stream that was opened here is reset."""
        self._transport.serve_stream(PROTOCOL, self.serve)
        try:
            yield
        finally:
            self._transport.host.remove_stream_handler(PROTOCOL)
            for line in list(self._lines.values()):
                await _hang_up(line)
            self._lines.clear()

    async def call(self, to: PeerAddress, request: bytes) -> bytes:
        """One request, one answer. A kept stream that turns out dead is replaced once.

        Raises PeerUnavailable or ProtocolViolation, within CALL_TIMEOUT_S for each of the at most two attempts.
        """
        line = self._line(to.peer)
        async with line.turn:
            if line.stream is not None:
                try:
                    return await self._ask(line, request)
                except PeerUnavailable as error:
                    if isinstance(error, DeadlineExceeded):
                        raise
            line.stream = await self._transport.open_stream(to, PROTOCOL, timeout_s=CALL_TIMEOUT_S)
            return await self._ask(line, request)

    async def serve(self, stream: HostStream) -> None:
        """Answer requests on one inbound stream until it ends, breaks a rule, or stays idle."""
        peer = stream.peer
        if self._served[peer] >= MAX_STREAMS_PER_PEER or self._served.total() >= MAX_STREAMS:
            self.counts["streams_refused"] += 1
            await _reset(stream)
            return
        self._served[peer] += 1
        try:
            while True:
                with trio.fail_after(IDLE_S):
                    request = await _read_frame(stream)
                reply = self._answer(peer, request)
                with trio.fail_after(CALL_TIMEOUT_S):
                    await _write_frame(stream, reply)
        except (PacelineError, trio.TooSlowError) as error:
            self.counts["streams_ended" if isinstance(error, PeerUnavailable) else "streams_broken"] += 1
        finally:
            self._served[peer] -= 1
            self._served += Counter()  # drops the zeros: peers that are gone take no memory
            await _reset(stream)

    def _line(self, peer: str) -> _Line:
        line = self._lines.setdefault(peer, _Line())
        self._lines.move_to_end(peer)
        return line

    async def trim(self) -> None:
        """Close the least recently used streams over the limit."""
        for peer in list(self._lines)[: max(0, len(self._lines) - MAX_STREAMS)]:
            if not self._lines[peer].turn.locked():
                await _hang_up(self._lines.pop(peer))

    async def _ask(self, line: _Line, request: bytes) -> bytes:
        """Raises DeadlineExceeded, PeerUnavailable or ProtocolViolation, the line's stream then being gone."""
        assert line.stream is not None
        answered = False
        try:
            with trio.fail_after(CALL_TIMEOUT_S):
                await _write_frame(line.stream, request)
                reply = await _read_frame(line.stream)
            answered = True
        except trio.TooSlowError as error:
            raise DeadlineExceeded(f"no answer within {CALL_TIMEOUT_S:.0f} s", peer=line.stream.peer) from error
        finally:
            if not answered:  # cancelled, too, in the middle of an answer
                await _hang_up(line)
        return reply


async def _write_frame(stream: HostStream, data: bytes) -> None:
    await stream.write(_LENGTH.pack(len(data)) + data)


async def _read_frame(stream: HostStream) -> bytes:
    (size,) = _LENGTH.unpack(await _read_exactly(stream, _LENGTH.size))
    if size > MAX_EXCHANGE_BYTES:
        raise ProtocolViolation(f"exchange of {size} bytes, {MAX_EXCHANGE_BYTES} allowed", peer=stream.peer)
    return await _read_exactly(stream, size)


async def _read_exactly(stream: HostStream, size: int) -> bytes:
    """Memory grows with what arrives, not with what was announced."""
    data = bytearray()
    while len(data) < size:
        piece = await stream.read(size - len(data))
        if not piece:
            raise PeerUnavailable("stream ended", peer=stream.peer)
        data += piece
    return bytes(data)


async def _hang_up(line: _Line) -> None:
    stream, line.stream = line.stream, None
    if stream is not None:
        await _reset(stream)


async def _reset(stream: HostStream) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + RESET_S):
        try:
            await stream.reset()
        except PacelineError:
            return
