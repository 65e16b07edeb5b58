"""Whole messages out of a byte stream: ``u32 length (big-endian) | message``, again and again.

Pure. Memory stays within AHEAD_BYTES, or twice the bytes that have really arrived, whatever length is promised.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from paceline.wire import limits
from paceline.wire.errors import ProtocolViolation

Received = bytes | bytearray | memoryview

AHEAD_BYTES = 1024 * 1024 + 4096
"""Room made for a long message at its first bytes: growing a buffer piece by piece costs more than deciphering it."""

_LENGTH = struct.Struct(">I")


def pack(messages: Sequence[bytes]) -> bytes:
    """Messages as one piece of the stream. Raises ValueError for one over the limit."""
    parts: list[bytes] = []
    for message in messages:
        _check(message)
        parts.append(_LENGTH.pack(len(message)))
        parts.append(message)
    return b"".join(parts)


def pack_in_chunks(messages: Sequence[bytes], size: int) -> Iterator[bytes]:
    """The same piece of the stream, cut into chunks of `size` bytes that are copied one at a time (they stay in cache).

    Raises ValueError, before the first chunk, for a message over the limit.
    """
    if sum(map(len, messages)) + 4 * len(messages) <= size:
        return iter((pack(messages),))
    for message in messages:
        _check(message)
    return _chunks(messages, size)


def _chunks(messages: Sequence[bytes], size: int) -> Iterator[bytes]:
    parts: list[bytes | memoryview] = []
    room = size
    for message in messages:
        for whole in (_LENGTH.pack(len(message)), message):
            view = memoryview(whole)
            while view:
                parts.append(view[:room])
                view = view[room:]
                room -= len(parts[-1])
                if not room:
                    yield b"".join(parts)
                    parts, room = [], size
    if parts:
        yield b"".join(parts)


def _check(message: bytes) -> None:
    if len(message) > limits.MAX_MESSAGE_BYTES:
        raise ValueError(f"message of {len(message)} bytes is over the limit")


class Unpacker:
    """The reading side. Messages that lie whole in one piece are views of it, longer ones are gathered."""

    def __init__(self) -> None:
        self._head = b""
        self._body = bytearray()
        self._filled = 0
        self._missing = 0

    def feed(self, data: Received) -> list[Received]:
        """The messages that `data` completes. Raises ProtocolViolation for a length over the limit."""
        view = memoryview(data)
        done: list[Received] = []
        at, end = 0, len(view)
        while at < end:
            if self._missing:
                at += self._gather(view[at : at + self._missing], done)
                continue
            if not self._head and end - at >= 4:
                (size,) = _LENGTH.unpack_from(view, at)
                at += 4
            else:
                piece = view[at : at + 4 - len(self._head)]
                self._head += piece
                at += len(piece)
                if len(self._head) < 4:
                    break
                (size,) = _LENGTH.unpack(self._head)
                self._head = b""
            if size > limits.MAX_MESSAGE_BYTES:
                raise ProtocolViolation(f"a message of {size} bytes was announced")
            if end - at >= size:
                done.append(view[at : at + size])
                at += size
            else:
                self._missing = size
                self._filled = 0
                self._body = bytearray(min(size, AHEAD_BYTES))
        return done

    def _gather(self, piece: memoryview, done: list[Received]) -> int:
        size = len(piece)
        if self._filled + size > len(self._body):
            room = max(len(self._body), size)
            self._body += bytes(min(room, self._filled + self._missing - len(self._body)))
        self._body[self._filled : self._filled + size] = piece
        self._filled += size
        self._missing -= size
        if not self._missing:
            done.append(self._body)
            self._body = bytearray()
        return size
