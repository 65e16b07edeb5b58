"""Messages out of a byte stream, whatever the pieces; records and their seal."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.net import framing
from paceline.net.direct import MAX_RECORD_PLAINTEXT, Records, Seal
from paceline.net.framing import Unpacker, pack, pack_in_chunks
from paceline.wire import limits
from paceline.wire.errors import ProtocolViolation

messages = st.lists(st.binary(max_size=300), max_size=12)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    out, at = [], 0
    while at < len(data):
        size = sizes[len(out) % len(sizes)]
        out.append(data[at : at + size])
        at += size
    return out


@given(sent=messages, sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8), ahead=st.integers(1, 500))
def test_any_cut_gives_the_same_messages(sent: list[bytes], sizes: list[int], ahead: int) -> None:
    original, framing.AHEAD_BYTES = framing.AHEAD_BYTES, ahead
    try:
        unpacker = Unpacker()
        got = [bytes(it) for piece in pieces(pack(sent), sizes) for it in unpacker.feed(piece)]
    finally:
        framing.AHEAD_BYTES = original
    assert got == sent


@given(sent=messages, size=st.integers(1, 700))
def test_chunks_are_the_same_stream(sent: list[bytes], size: int) -> None:
    chunks = list(pack_in_chunks(sent, size))
    assert b"".join(chunks) == pack(sent)
    assert all(len(chunk) <= size for chunk in chunks)


@given(junk=st.binary(max_size=400))
def test_any_bytes_give_messages_or_a_violation(junk: bytes) -> None:
    unpacker = Unpacker()
    try:
        assert sum(map(len, unpacker.feed(junk))) <= len(junk)
    except ProtocolViolation:
        pass


def test_a_promised_length_allocates_little() -> None:
    tracemalloc.start()
    unpacker = Unpacker()
    assert unpacker.feed(struct.pack(">I", limits.MAX_MESSAGE_BYTES) + b"x") == []
    for _ in range(100_000):
        unpacker.feed(b"x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * framing.AHEAD_BYTES
    with pytest.raises(ProtocolViolation):
        Unpacker().feed(struct.pack(">I", limits.MAX_MESSAGE_BYTES + 1))


@given(
    plain=st.lists(st.binary(max_size=2000), max_size=6), sizes=st.lists(st.integers(1, 900), min_size=1, max_size=6)
)
def test_what_is_sealed_opens_in_order_whatever_the_cut(plain: list[bytes], sizes: list[int]) -> None:
    out, into, records = Seal(bytes(32), 5), Seal(bytes(32), 5), Records()
    sealed = b"".join(out.seal(memoryview(it)) for it in plain)
    opened = [into.open(record) for piece in pieces(sealed, sizes) for record in records.feed(piece)]
    assert opened == [it for it in plain if it]


def test_records_are_noises() -> None:
    """Byte for byte what the library's cipher state makes of the same key."""
    from noise.connection import NoiseConnection
    from noise.state import CipherState

    noise = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256").noise_protocol
    theirs = CipherState(noise)
    theirs.initialize_key(bytes(range(32)))
    ours = Seal(bytes(range(32)))
    for _ in range(300):
        expected = theirs.encrypt_with_ad(b"", b"same bytes")
        assert ours.seal(memoryview(b"same bytes")) == struct.pack(">H", len(expected)) + expected
    sealed = ours.seal(memoryview(bytes(2 * MAX_RECORD_PLAINTEXT + 1)))
    assert [len(record) for record in Records().feed(sealed)] == [65_535, 65_535, 17]


@given(at=st.integers(0, 60), bit=st.integers(0, 7))
def test_a_changed_bit_does_not_open(at: int, bit: int) -> None:
    record = bytearray(Seal(bytes(32)).seal(memoryview(bytes(45)))[2:])
    record[at] ^= 1 << bit
    with pytest.raises(ProtocolViolation):
        Seal(bytes(32)).open(memoryview(record))
