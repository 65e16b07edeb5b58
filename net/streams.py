"""libp2p streams with the library's exceptions translated, and the fallback channel over one.

Knows one stream at a time. Refuses to know how it was opened.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio

from paceline.net.framing import Received, Unpacker, pack
from paceline.net.hardening import translated
from paceline.net.sky import StreamGate
from paceline.net.transport import ChannelKind
from paceline.wire.errors import PeerUnavailable, ProtocolViolation
from paceline.wire.ids import PeerId

LINK_PROTOCOL = "/paceline/link/1"

_READ_BYTES = 256 * 1024
_WRITE_BYTES = 1024 * 1024
_RESET_S = 1.0

T = TypeVar("T")


class HostStream:
    """A stream to an authenticated peer. Everything raises PeerUnavailable or ProtocolViolation."""

    def __init__(self, stream: Any, gate: StreamGate | None = None) -> None:
        self.peer = PeerId(str(stream.muxed_conn.peer_id))
        self._stream = stream
        self._gate = gate

    @property
    def remote_ip(self) -> str | None:
        """IP address at the other end of the connection that carries the stream; None over a circuit, and over IPv6,
        whose addresses the library does not tell.
        """
        try:
            found = self._stream.muxed_conn.get_remote_address()
        except Exception as error:
            raise translated(error, self.peer) from error
        return str(found[0]) if found else None

    async def read(self, n: int) -> bytes:
        """1 to n bytes; raises PeerUnavailable at the end of the stream."""
        data: bytes = await self._call(self._stream.read, n)
        if self._gate is not None:
            await self._gate.passable(self.peer)
        if not data:
            raise PeerUnavailable("the stream has ended", peer=self.peer)
        return data

    async def write(self, data: bytes) -> None:
        """One write. After a cancel the stream must be reset: a part may have been sent."""
        if self._gate is not None:
            await self._gate.sent(self.peer, len(data))
        await self._call(self._stream.write, data)

    async def reset(self) -> None:
        """Give the stream up, both ways. Wakes nobody here who reads it."""
        await self._call(self._stream.reset)

    async def _call(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        try:
            return await call(*args)
        except Exception as error:
            raise translated(error, self.peer) from error


class StreamChannel:
    """`net.transport.Channel` over a libp2p stream: slower than the direct one, and goes wherever libp2p goes."""

    kind: ChannelKind = "stream"

    def __init__(self, stream: HostStream, *, dialer: bool) -> None:
        self.peer = stream.peer
        self.dialer = dialer
        self.bytes_heard = 0
        self._stream = stream
        self._unpacker = Unpacker()
        self.closed = False
        self._scopes: set[trio.CancelScope] = set()

    async def send(self, messages: Sequence[bytes]) -> None:
        data = pack(messages)
        done = False
        try:
            for start in range(0, len(data), _WRITE_BYTES):
                await self._unless_closed(self._stream.write, data[start : start + _WRITE_BYTES])
            done = True
        finally:
            if not done:
                await self._kill()

    async def receive(self) -> list[Received]:
        while True:
            try:
                data = await self._unless_closed(self._stream.read, _READ_BYTES)
                self.bytes_heard += len(data)
                messages = self._unpacker.feed(data)
            except (PeerUnavailable, ProtocolViolation) as error:
                error.peer = self.peer
                await self._kill()
                raise
            if messages:
                return messages

    async def aclose(self) -> None:
        await self._kill()
        await trio.lowlevel.checkpoint()

    async def _unless_closed(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """`aclose` ends the call with PeerUnavailable: a reset alone does not wake our own reader."""
        if not self.closed:
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    return await call(*args)
                finally:
                    self._scopes.discard(scope)
        raise PeerUnavailable("the channel is closed", peer=self.peer)

    async def _kill(self) -> None:
        if self.closed:
            return
        self.closed = True
        for scope in self._scopes:
            scope.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _RESET_S):
            try:
                await self._stream.reset()
            except PeerUnavailable:
                # Gone already.
                pass
