"""Every message survives the trip, and any bytes give a message or Malformed, in memory bounded by their length."""

from __future__ import annotations

import struct
import tracemalloc
from functools import cache
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import inspect

from paceline.wire import limits
from paceline.wire.codec import decode, decode_header, encode, encode_header, encode_many, payload_bytes
from paceline.wire.errors import Malformed
from paceline.wire.messages import BlockPiece, Frame, Message, OpenStage, PeerAddress, Ping, Prompt, Stage
from paceline.wire.offers import Offer, SignedOffer
from paceline.wire.sampling import SamplingParams

KINDS: tuple[type, ...] = get_args(Message)
SOME = 5
"""Longest collection drawn; the limits themselves are tested in test_limits.py."""


# --- strategies, from the records' own types --------------------------------------------------------------------


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Everything that a field's type and limits allow, collections kept short."""
    match kind:
        case inspect.StructType():
            return st.builds(kind.cls, **{field.name: values(field.type) for field in kind.fields})
        case inspect.UnionType():
            return st.one_of([values(one) for one in kind.types])
        case inspect.VarTupleType():
            low = kind.min_length or 0
            size = min(low + SOME, kind.max_length if kind.max_length is not None else low + SOME)
            return st.lists(values(kind.item_type), min_size=low, max_size=size).map(tuple)
        case inspect.TupleType():
            return st.tuples(*(values(one) for one in kind.item_types))
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case _:
            return _scalars(kind)


def _scalars(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.IntType():
            low = kind.ge if kind.ge is not None else -(1 << 63)
            high = kind.le if kind.le is not None else (kind.lt if kind.lt is not None else 1 << 63) - 1
            return st.integers(low, high)
        case inspect.FloatType():
            low = kind.ge if kind.ge is not None else kind.gt
            return st.floats(low, kind.le, exclude_min=kind.gt is not None, allow_nan=False)
        case inspect.StrType():
            return st.text(min_size=kind.min_length or 0, max_size=min(kind.max_length or 40, 40))
        case inspect.BytesType():
            return st.binary(min_size=kind.min_length or 0, max_size=min(kind.max_length or 80, 80))
        case _:
            raise AssertionError(f"no strategy for {kind}")


@cache
def records(cls: type) -> st.SearchStrategy[Any]:
    return values(inspect.type_info(cls))


@st.composite
def routes(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of an OpenStage that must agree with each other."""
    edges = [0, *sorted(draw(st.sets(st.integers(1, limits.MAX_LAYERS), min_size=1, max_size=SOME)))]
    addresses = draw(st.lists(records(PeerAddress), min_size=len(edges) - 1, max_size=len(edges) - 1))
    route = tuple(Stage(*three) for three in zip(addresses, edges[:-1], edges[1:], strict=True))
    lengths = draw(st.lists(st.integers(0, limits.MAX_CONTEXT), min_size=len(route), max_size=len(route)))
    return {"route": route, "lengths": tuple(lengths), "index": draw(st.integers(0, len(route) - 1))}


@st.composite
def messages(draw: st.DrawFn, kind: type | None = None) -> tuple[Any, bytes]:
    """A valid message with a payload that fits it."""
    message = draw(records(kind or draw(st.sampled_from(KINDS))))
    payload = b""
    if isinstance(message, OpenStage):
        message = msgspec.structs.replace(message, **draw(routes()))
    elif isinstance(message, Prompt):
        message = msgspec.structs.replace(message, start=min(message.start, limits.MAX_CONTEXT - len(message.ids)))
    elif isinstance(message, Frame):
        n = draw(st.integers(1, 3))
        start = min(message.start, limits.MAX_CONTEXT - n)
        message = msgspec.structs.replace(message, n=n, start=start, hidden=draw(st.integers(1, 64)))
        payload = draw(st.binary(min_size=payload_bytes(message), max_size=payload_bytes(message)))
    elif isinstance(message, BlockPiece):
        payload = draw(st.binary(max_size=256))
    return message, payload


def framed(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(header)) + header + payload


# --- the trip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_trip(kind: type) -> None:
    @given(messages(kind))
    def trip(pair: tuple[Any, bytes]) -> None:
        message, payload = pair
        back, rest = decode(encode(message, payload))
        assert type(back) is kind
        assert back == message
        assert bytes(rest) == payload

    trip()


@given(records(Offer), records(SignedOffer), records(SamplingParams))
def test_records_that_travel_inside_others_survive_too(offer: Offer, signed: SignedOffer, how: SamplingParams) -> None:
    for record in (offer, signed, how):
        assert decode_header(encode_header(record), type(record)) == record


@given(messages())
def test_an_independent_library_reads_the_same_array(pair: tuple[Any, bytes]) -> None:
    plain = msgpack.unpackb(encode_header(pair[0]), strict_map_key=True)
    assert plain[0] == pair[0].__struct_config__.tag
    assert _tuples(plain) == _tuples(msgspec.to_builtins(pair[0], builtin_types=(bytes,)))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@given(messages(Frame))
def test_the_payload_is_a_view_and_any_buffer_decodes(pair: tuple[Any, bytes]) -> None:
    data = bytearray(encode(*pair))
    message, payload = decode(memoryview(data))
    assert message == pair[0]
    assert payload.obj is data


@given(messages())
def test_an_older_reader_ignores_appended_fields(pair: tuple[Any, bytes]) -> None:
    message, payload = pair
    fields = msgpack.unpackb(encode_header(message))
    grown = msgpack.packb([*fields, {"later": [1, 2]}, None])
    assert len(fields) == len(message.__struct_fields__) + 1, "optional trailing fields are written, too"
    assert decode(framed(grown, payload))[0] == message


def test_several_messages_for_one_write() -> None:
    pairs = [(Ping(1), b""), (Ping(2), b"")]
    assert [decode(data)[0] for data in encode_many(pairs)] == [Ping(1), Ping(2)]


# --- what is refused ----------------------------------------------------------------------------------------------


def outcome(data: bytes) -> Any:
    """The message, or None where it was refused. Any exception but Malformed fails the test."""
    try:
        return decode(data)[0]
    except Malformed:
        return None


@given(st.binary(max_size=600))
@example(b"")
@example(b"\x00\x00\x00\x00")
@example(framed(b"\x94\x0b\x01\xa1\xff\xc2"))
@example(framed(b"\x92\x0c\xd6\xff\x00\x00\x00\x00"))
def test_any_bytes_give_a_message_or_malformed(data: bytes) -> None:
    outcome(data)
    outcome(framed(data))


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 1 << 63) | st.floats() | st.text(max_size=9), st.lists))
def test_any_messagepack_gives_a_message_or_malformed(value: Any) -> None:
    outcome(framed(msgpack.packb(value)))
    outcome(framed(msgpack.packb([1, value])))


@given(messages(), st.data())
def test_a_damaged_message_gives_a_message_or_malformed(pair: tuple[Any, bytes], data: st.DataObject) -> None:
    whole = bytearray(encode(*pair))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        how = data.draw(st.sampled_from(("change", "drop", "insert", "cut")))
        if how == "change":
            whole[at] = data.draw(st.integers(0, 255))
        elif how == "insert":
            whole[at:at] = data.draw(st.binary(max_size=8))
        else:
            del whole[at : at + 1 if how == "drop" else len(whole)]
        if not whole:
            break
    outcome(bytes(whole))
    outcome(framed(bytes(whole[4:])))


@given(messages(), st.data())
def test_every_proper_prefix_is_refused(pair: tuple[Any, bytes], data: st.DataObject) -> None:
    whole = encode(*pair)
    cut = data.draw(st.integers(0, len(whole) - len(pair[1]) - 1))
    assert outcome(whole[:cut]) is None


NEAR_PING = {
    "bool for int": b"\x92\x0c\xc3",
    "float for int": b"\x92\x0c\xcb" + struct.pack(">d", 1.0),
    "text for int": b"\x92\x0c\xa11",
    "bool for tag": b"\x92\xc3\x01",
    "field missing": b"\x91\x0c",
    "trailing byte": b"\x92\x0c\x01\x00",
    "unknown tag": b"\x92\x7f\x01",
    "negative tag": b"\x92\xff\x01",
    "empty array": b"\x90",
    "nil": b"\xc0",
    "bare tag": b"\x0c",
    "map": b"\x82\x00\x0c\x01\x01",
    "over the limit": b"\x92\x0c\xcf\x80" + bytes(7),
}


@pytest.mark.parametrize("header", NEAR_PING.values(), ids=NEAR_PING.keys())
def test_near_misses_of_a_ping_are_refused(header: bytes) -> None:
    assert outcome(framed(b"\x92\x0c\x01")) == Ping(1)
    assert outcome(framed(header)) is None


@given(messages(), st.binary(min_size=1, max_size=16))
def test_a_payload_must_be_the_one_promised(pair: tuple[Any, bytes], extra: bytes) -> None:
    message, payload = pair
    if not isinstance(message, BlockPiece):
        assert outcome(encode(message, payload + extra)) is None
    if payload and isinstance(message, Frame):
        assert outcome(encode(message, payload[:-1])) is None


@given(messages(OpenStage), st.sampled_from(("index", "lengths", "gap", "empty", "late")))
def test_a_route_that_is_no_ring_is_refused(pair: tuple[Any, bytes], fault: str) -> None:
    opening: OpenStage = pair[0]
    last = opening.route[-1]
    longer = {"lengths": (*opening.lengths, 0)}
    changed: dict[str, Any] = {
        "index": {"index": len(opening.route)},
        "lengths": longer,
        "gap": {"route": (*opening.route, Stage(last.at, last.end + 1, last.end + 2)), **longer},
        "empty": {"route": (*opening.route, Stage(last.at, last.end, last.end)), **longer},
        "late": {"route": (Stage(last.at, 1, 2),), "lengths": (0,), "index": 0},
    }[fault]
    assert outcome(encode(msgspec.structs.replace(opening, **changed))) is None


def test_positions_past_the_limit_are_refused() -> None:
    prompt = Prompt(session=bytes(16), layer=0, epoch=1, branch=0, start=limits.MAX_CONTEXT, ids=(1,))
    assert outcome(encode(prompt)) is None
    assert outcome(encode(msgspec.structs.replace(prompt, start=limits.MAX_CONTEXT - 1))) is not None


# --- memory -------------------------------------------------------------------------------------------------------


def array32(length: int) -> bytes:
    return b"\xdd" + struct.pack(">I", length)


FULL = limits.MAX_HEADER_BYTES
PROMPT_HEAD = encode_header(Prompt(session=bytes(16), layer=0, epoch=1, branch=0, start=0, ids=(1,)))[:-2]
HOSTILE = {
    "nested arrays, each as long as the message": (array32(FULL - 1) * 1000).ljust(FULL, b"\0"),
    "an array of four thousand million": array32(0xFFFFFFFF),
    "a prompt of four thousand million": PROMPT_HEAD + array32(0xFFFFFFFF),
    "a full prompt that is not there": PROMPT_HEAD + array32(limits.MAX_CONTEXT),
    "a session of four gigabytes": b"\x97\x03\xc6\xff\xff\xff\xff",
    "appended fields, nested": (b"\x9f\x0c\x01" + array32(FULL - 1) * 1000).ljust(FULL, b"\0"),
    "appended fields, deep": (b"\x9f\x0c\x01" + b"\x91" * (FULL - 3)),
    "appended maps": (b"\x9f\x0c\x01" + b"\xdf\xff\xff\xff\xff" * 1000).ljust(FULL, b"\0"),
    "a flood of appended fields": array32(FULL - 5) + b"\x0c\x01" + b"\x80" * (FULL - 7),
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_lengths_cost_no_memory(header: bytes) -> None:
    assert peak_bytes(framed(header)) < 64 * 1024


def test_the_largest_prompt_costs_memory_in_proportion() -> None:
    prompt = Prompt(session=bytes(16), layer=0, epoch=1, branch=0, start=0, ids=tuple(range(limits.MAX_CONTEXT)))
    data = encode(prompt)
    assert peak_bytes(data) < 20 * len(data)


def peak_bytes(data: bytes) -> int:
    """Python memory that decoding took at its worst moment; a first run pays for what is only built once."""
    outcome(data)
    tracemalloc.start()
    try:
        outcome(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
