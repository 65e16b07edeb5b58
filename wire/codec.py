"""Bytes ↔ messages: total, bounded, and without class names from the wire.

Layout of one message: ``u32 header length (big-endian) | header (MessagePack) | payload (raw)``.
`decode` gives a message or raises `Malformed`, for any bytes, in memory bounded by the input's length.

The header is parsed straight into its record, with the record's own limits checked as each array and number is met
(docs/adr/0003-one-decoder.md). No tree of untyped values is ever built: nested arrays that each declare a great length
would cost 16,000 times their bytes there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from paceline.wire import limits
from paceline.wire.errors import Malformed
from paceline.wire.messages import BlockPiece, Frame, Message, OpenStage, Prompt

Buffer = bytes | bytearray | memoryview

_LENGTH = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()
_DTYPE_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "i64": 8}


def encode(message: Message, payload: Buffer = b"") -> bytes:
    """One message as bytes. Copies the payload once."""
    header = encode_header(message)
    return b"".join((_LENGTH.pack(len(header)), header, payload))


def encode_header(message: msgspec.Struct) -> bytes:
    """The MessagePack array of one tagged record."""
    return _ENCODER.encode(message)


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
    _check(message, payload)
    return message, payload


def decode_header(data: Buffer, kind: Any) -> Any:
    """MessagePack bytes → a validated record of `kind`. Raises Malformed."""
    try:
        return _decoder(kind).decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Malformed(f"not a message: {error}") from error


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """One compiled decoder for each of the few kinds that cross the wire."""
    return msgspec.msgpack.Decoder(kind, strict=True)


def payload_bytes(frame: Frame) -> int:
    """How many payload bytes a frame's header promises."""
    return frame.n * frame.hidden * _DTYPE_BYTES[frame.dtype]


def _check(message: Message, payload: memoryview) -> None:
    """What one field's own limits cannot say. Raises Malformed."""
    if isinstance(message, Frame):
        if len(payload) != payload_bytes(message):
            raise Malformed(f"frame promises {payload_bytes(message)} payload bytes and carries {len(payload)}")
        _check_positions(message.start, message.n)
        return
    if isinstance(message, BlockPiece):
        if len(payload) > limits.MAX_BLOCK_PIECE_BYTES:
            raise Malformed(f"block piece of {len(payload)} bytes is over the limit")
        return
    if len(payload):
        raise Malformed(f"{type(message).__name__} carries {len(payload)} unexpected payload bytes")
    if isinstance(message, Prompt):
        _check_positions(message.start, len(message.ids))
    elif isinstance(message, OpenStage):
        _check_route(message)


def _check_positions(start: int, n: int) -> None:
    if start + n > limits.MAX_CONTEXT:
        raise Malformed(f"positions [{start}, {start + n}) pass the limit of {limits.MAX_CONTEXT}")


def _check_route(message: OpenStage) -> None:
    """A ring: spans that follow each other from layer 0, a KV length for each, and a place in it for the receiver."""
    edges = [0, *(stage.end for stage in message.route)]
    if any(stage.start != edge or stage.end <= edge for stage, edge in zip(message.route, edges, strict=False)):
        raise Malformed("route whose spans do not follow each other")
    if len(message.lengths) != len(message.route) or message.index >= len(message.route):
        raise Malformed(f"route of {len(message.route)}, {len(message.lengths)} lengths, index {message.index}")


def encode_many(messages: Sequence[tuple[Message, Buffer]]) -> list[bytes]:
    """Several messages, for one coalesced write."""
    return [encode(message, payload) for message, payload in messages]
