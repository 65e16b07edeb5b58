"""py-libp2p's yamux, repaired: flow control that is enforced, writes that survive a cancel, resets that are seen.

Knows the internals of libp2p 0.8.1's Yamux and YamuxStream. Refuses to know hosts and streams' contents. Applied once,
by `net.hardening.harden`; why each is needed is told at each.
"""

from __future__ import annotations

import struct
from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux

WINDOW_BYTES = 1 << 20
"""Receive credit of one stream: what a peer may send ahead of our reading."""

STALL_S = 60.0
"""A writer waits this long for credit, then resets the stream and says so (library: 5 s, and the peer never hears)."""

WRITE_DEADLINE_S = 30.0
"""One frame into the socket; after that the connection is closed."""

_CHUNK_BYTES = 65_535 - 16 - 12
"""Payload that makes one yamux frame exactly one Noise message."""

_CREDIT_POLL_S = 0.002
_HEADER = struct.Struct("!BBHII")


def enforce_receive_window() -> None:
    """A peer that sends past its window is cut off. The library only logs it: +159 MB were written by one peer."""
    original = yamux.Yamux.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.stream_buffers = _BoundedBuffers()

    yamux.Yamux.__init__ = init


class _BoundedBuffer(bytearray):
    def extend(self, data: Any) -> None:
        if len(self) + len(data) > 2 * WINDOW_BYTES:
            # The one exception that the library's read loop lets through, and so closes the connection.
            raise trio.TooSlowError("the peer exceeded its receive window")
        super().extend(data)


class _BoundedBuffers(dict[int, bytearray]):
    def __setitem__(self, stream: int, buffer: bytearray) -> None:
        super().__setitem__(stream, _BoundedBuffer(buffer))


def update_window_in_halves() -> None:
    """Credit is given back when half of it is used: one update per 512 KB, not one or two per read, and never twice."""

    async def give_credit(self: Any, *, bytes_read: int = 0) -> None:
        buffered = len(self.conn.stream_buffers.get(self.stream_id) or b"")
        used = WINDOW_BYTES - (self.recv_window + buffered)
        if used >= WINDOW_BYTES // 2:
            self.recv_window += used
            self.target_recv_window = WINDOW_BYTES
            await self.send_window_update(used)

    yamux.YamuxStream._auto_tune_and_send_window_update = give_credit


def write_without_locks() -> None:
    """Frames that fill one Noise message each; a writer without credit waits a minute and then tells the peer."""

    async def write(self: Any, data: bytes) -> None:
        if self.send_closed:
            raise MuxedStreamError("Stream is closed for sending")
        view, sent = memoryview(data), 0
        while sent < len(view):
            if self.send_window <= 0:
                await _wait_for_credit(self)
            if _is_over(self):
                raise MuxedStreamReset("Stream is closed")
            size = min(self.send_window, _CHUNK_BYTES, len(view) - sent)
            self.send_window -= size
            header = _HEADER.pack(0, yamux.TYPE_DATA, 0, self.stream_id, size)
            await self.conn._write_frame(b"".join((header, view[sent : sent + size])))
            sent += size

    yamux.YamuxStream.write = write


def _is_over(stream: Any) -> bool:
    return bool(stream.closed or stream.send_closed or stream.conn.event_shutting_down.is_set())


async def _wait_for_credit(stream: Any) -> None:
    with trio.move_on_after(STALL_S) as scope:
        while stream.send_window <= 0 and not _is_over(stream):
            await trio.sleep(_CREDIT_POLL_S)
    if scope.cancelled_caught:
        await stream.reset()
        raise MuxedStreamReset("no credit from the remote reader")


def shield_frame_writes() -> None:
    """Cancelling a stream's write never cuts a frame in two. Unpatched, all other streams of the connection hang."""

    async def write_frame(self: Any, data: bytes) -> None:
        async with self._write_lock:
            if self.event_shutting_down.is_set() and data[1] != yamux.TYPE_GO_AWAY:
                raise ConnectionClosedError("yamux is closed", transport="tcp")
            with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_DEADLINE_S) as scope:
                await self.secured_conn.write(data)
        if scope.cancelled_caught:
            await self._cleanup_on_error()
            raise ConnectionClosedError("write timed out", transport="tcp")

    yamux.Yamux._write_frame = write_frame


def read_without_locks() -> None:
    """Buffered bytes are read without a lock per call, and before any news of a reset or an end."""
    yamux.Yamux.read_stream = _read_stream


async def _read_stream(self: Any, stream_id: int, n: int | None = -1) -> bytes:
    while True:
        stream = self.streams.get(stream_id)
        if stream is None:
            raise MuxedStreamEOF("Stream closed")
        buffer = self.stream_buffers.get(stream_id)
        if buffer:
            data = bytes(buffer) if n is None or n < 0 or n >= len(buffer) else bytes(buffer[:n])
            del buffer[: len(data)]
            if stream.closed and not buffer:
                async with self.streams_lock:
                    self._finalize_stream_locked(stream, fully_closed=True)
            return data
        if stream.reset_received:
            raise MuxedStreamReset("Stream was reset")
        if buffer is None or stream.recv_closed or self.event_shutting_down.is_set():
            raise MuxedStreamEOF("Stream closed")
        if stream.closed:
            raise MuxedStreamReset("Stream closed")
        event = self.stream_events.get(stream_id)
        if event is None:
            raise MuxedStreamEOF("Stream was removed")
        await event.wait()
        if stream_id in self.stream_events:
            self.stream_events[stream_id] = trio.Event()


def report_resets() -> None:
    """A reset, or a lost connection, reads as MuxedStreamReset. Unpatched it looks like a clean end of the stream."""
    original = yamux.YamuxStream.read

    async def read(self: Any, n: int | None = -1) -> Any:
        try:
            return await original(self, n)
        except MuxedStreamEOF:
            if self.reset_received:
                raise MuxedStreamReset("Stream was reset, or its connection lost") from None
            raise

    yamux.YamuxStream.read = read


FIXES = (
    enforce_receive_window,
    update_window_in_halves,
    write_without_locks,
    shield_frame_writes,
    read_without_locks,
    report_resets,
)
