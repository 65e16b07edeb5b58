"""Whole messages out of a byte stream: ``u32 length (big-endian) | message``, again and again.

Pure. Memory stays within AHEAD_BYTES, or twice the bytes that have really arrived, whatever length is promised.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

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
        if len(message) > limits.MAX_MESSAGE_BYTES:
            raise ValueError(f"message of {len(message)} bytes is over the limit")
        parts.append(_LENGTH.pack(len(message)))
        parts.append(message)
    return b"".join(parts)


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
