"""Bytes ↔ messages: total, bounded, and without class names from the wire.

Layout of one message: ``u32 header length (big-endian) | header (MessagePack) | payload (raw)``.
`decode` gives a message or raises `Malformed`, for any bytes, in memory bounded by the input's length.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec

from paceline.wire import limits
from paceline.wire.errors import Malformed
from paceline.wire.messages import BlockPiece, Frame, Message

Buffer = bytes | bytearray | memoryview

_LENGTH = struct.Struct(">I")
_DTYPE_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "i64": 8}


def encode(message: Message, payload: Buffer = b"") -> bytes:
    """One message as bytes. Copies the payload once."""
    header = encode_header(message)
    return b"".join((_LENGTH.pack(len(header)), header, payload))


def encode_header(message: msgspec.Struct) -> bytes:
    """The MessagePack array of one tagged record."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)))
    return packed


def decode(data: Buffer) -> tuple[Message, memoryview]:
    """``(message, payload)``; the payload is a view into `data`. Raises Malformed."""
    view = memoryview(data)
    if len(view) < 4:
        raise Malformed(f"message of {len(view)} bytes has no header length")
    if len(view) > limits.MAX_MESSAGE_BYTES:
        raise Malformed(f"message of {len(view)} bytes is over the limit")
    (size,) = _LENGTH.unpack_from(view)
    if size > limits.MAX_HEADER_BYTES or 4 + size > len(view):
        raise Malformed(f"header of {size} bytes in a message of {len(view)}")
    message: Message = decode_header(view[4 : 4 + size], Message)
    payload = view[4 + size :]
    _check_payload(message, payload)
    return message, payload


def decode_header(data: Buffer, kind: Any) -> Any:
    """MessagePack bytes → a validated record of `kind`. Raises Malformed."""
    try:
        plain = msgpack.unpackb(data, use_list=True, strict_map_key=True, max_ext_len=0)
        return msgspec.convert(plain, kind, strict=True)
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not a message: {error}") from error


def payload_bytes(frame: Frame) -> int:
    """How many payload bytes a frame's header promises."""
    return frame.n * frame.hidden * _DTYPE_BYTES[frame.dtype]


def _check_payload(message: Message, payload: memoryview) -> None:
    if isinstance(message, Frame):
        if len(payload) != payload_bytes(message):
            raise Malformed(f"frame promises {payload_bytes(message)} payload bytes and carries {len(payload)}")
    elif isinstance(message, BlockPiece):
        if len(payload) > limits.MAX_BLOCK_PIECE_BYTES:
            raise Malformed(f"block piece of {len(payload)} bytes is over the limit")
    elif len(payload):
        raise Malformed(f"{type(message).__name__} carries {len(payload)} unexpected payload bytes")


def encode_many(messages: Sequence[tuple[Message, Buffer]]) -> list[bytes]:
    """Several messages, for one coalesced write."""
    return [encode(message, payload) for message, payload in messages]
