"""The wire as it was released: tags and bytes that change only on purpose, with PROTOCOL_VERSION.

To see the bytes of a message after a deliberate change: `encode_header(message).hex()`.
"""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from msgspec import structs

from paceline.wire.codec import decode, encode
from paceline.wire.messages import (
    PROTOCOL_VERSION,
    BlockRequest,
    CloseStage,
    Frame,
    Hello,
    Message,
    Nack,
    NextToken,
    OpenStage,
    PeerAddress,
    Ping,
    Pong,
    Prompt,
    Stage,
    StageError,
    StageOpened,
    TokenEvent,
)
from paceline.wire.offers import Measured
from paceline.wire.sampling import SamplingParams

TAGS = {
    "OpenStage": 1,
    "StageOpened": 2,
    "Prompt": 3,
    "CloseStage": 4,
    "TokenEvent": 5,
    "StageError": 6,
    "Frame": 7,
    "NextToken": 8,
    "Nack": 9,
    "FencedBy": 10,
    "Hello": 11,
    "Ping": 12,
    "Pong": 13,
    "StatusRequest": 14,
    "Status": 15,
    "BlockRequest": 16,
    "BlockPiece": 17,
    "HoldingsRequest": 18,
    "Holdings": 19,
}

SESSION = bytes(range(16))
EPOCH = (1 << 32) + 7
GOLDEN = {
    "hello": (
        Hello(protocol=1, agent="paceline/0.1.0", serves=True),
        b"",
        "00000013940b01ae706163656c696e652f302e312e30c3",
    ),
    "ping": (
        Ping(nonce=300),
        b"",
        "00000006930ccd012c00",
    ),
    "pong": (
        Pong(nonce=300, bytes_per_s=2.5e6),
        b"",
        "0000000e930dcd012ccb414312d000000000",
    ),
    "open": (
        OpenStage(
            session=SESSION,
            revision=bytes(range(32)),
            epoch=EPOCH,
            branch=0,
            index=1,
            route=(
                Stage(PeerAddress("A", ("/ip4/127.0.0.1/tcp/1",)), 0, 4),
                Stage(PeerAddress("B", (), ("/ip4/127.0.0.1/tcp/2",)), 4, 9),
            ),
            lengths=(0, 0),
            known=3,
            prompt_length=3,
            max_positions=64,
            sampling=SamplingParams(seed=5, temperature=0.5, stop_ids=(2,)),
        ),
        b"",
        "000000cadc001001c410000102030405060708090a0b0c0d0e0fc420000102030405060708090a0b0c0d0e0f101112131415"
        "161718191a1b1c1d1e1fcf00000001000000070001929493a14191b42f6970342f3132372e302e302e312f7463702f31"
        "900004909493a1429091b42f6970342f3132372e302e302e312f7463702f320409909200000303409c05cb3fe0000000"
        "00000000cb3ff0000000000000cb0000000000000000cb3ff0000000000000cb0000000000000000cb00000000000000"
        "00ff910200a0cd0200c2c200",
    ),
    "opened": (
        StageOpened(session=SESSION, layer=4, epoch=EPOCH, length=12),
        b"",
        "000000209602c410000102030405060708090a0b0c0d0e0f04cf00000001000000070cc2",
    ),
    "prompt": (
        Prompt(session=SESSION, layer=0, epoch=EPOCH, branch=1, start=0, ids=(1, 200, 49151)),
        b"",
        "000000279703c410000102030405060708090a0b0c0d0e0f00cf000000010000000701009301ccc8cdbfff",
    ),
    "frame": (
        Frame(
            session=SESSION,
            layer=4,
            revision_tag=b"\x00\x01\x02\x03",
            epoch=EPOCH,
            branch=1,
            start=300,
            n=1,
            dtype="f16",
            hidden=2,
            lengths=(0, -1),
        ),
        b"\x00\x3c\x00\xbc",
        "000000339d07c410000102030405060708090a0b0c0d0e0f04c40400010203cf000000010000000701cd012c01a36631"
        "36029200ff9000003c00bc",
    ),
    "next token": (
        NextToken(session=SESSION, epoch=EPOCH, branch=1, index=301, token=49151),
        b"",
        "000000259708c410000102030405060708090a0b0c0d0e0fcf000000010000000701cd012dcdbfff00",
    ),
    "token event": (
        TokenEvent(
            session=SESSION, epoch=EPOCH, branch=1, index=301, token=2, finish="stop", lengths=(0, -1), logprob=-0.5
        ),
        b"",
        "000000359b05c410000102030405060708090a0b0c0d0e0fcf000000010000000701cd012d02a473746f709200ffcbbf"
        "e00000000000009090",
    ),
    "nack": (
        Nack(session=SESSION, layer=0, epoch=EPOCH, branch=1, have=299),
        b"",
        "000000229609c410000102030405060708090a0b0c0d0e0f00cf000000010000000701cd012b",
    ),
    "error": (
        StageError(session=SESSION, layer=4, epoch=EPOCH, code="peer_unavailable", message="gone", accused="B"),
        b"",
        "000000369706c410000102030405060708090a0b0c0d0e0f04cf0000000100000007b0706565725f756e617661696c61"
        "626c65a4676f6e65a142",
    ),
    "close": (
        CloseStage(session=SESSION, epoch=EPOCH),
        b"",
        "0000001d9304c410000102030405060708090a0b0c0d0e0fcf0000000100000007",
    ),
    "block request": (
        BlockRequest(request=1, hash=bytes(32), offset=1048576, length=4096),
        b"",
        "0000002d951001c4200000000000000000000000000000000000000000000000000000000000000000ce00100000cd1000",
    ),
}


def test_tags_are_distinct_and_stay() -> None:
    assert {kind.__name__: kind.__struct_config__.tag for kind in get_args(Message)} == TAGS
    assert len(set(TAGS.values())) == len(TAGS)
    assert PROTOCOL_VERSION == 1


@pytest.mark.parametrize(("message", "payload", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
def test_bytes_stay(message: Message, payload: bytes, expected: str) -> None:
    data = bytes.fromhex(expected.replace(" ", ""))
    assert encode(message, payload) == data
    assert decode(data) == (message, payload)


def test_heartbeats_of_before_bursts_were_measured_still_decode() -> None:
    assert decode(bytes.fromhex("00000005920ccd012c")) == (Ping(300), b"")
    assert decode(bytes.fromhex("00000005920dcd012c")) == (Pong(300, 0.0), b"")


def test_what_a_node_measured_is_read_by_older_and_newer_peers() -> None:
    """Fields are appended: a shorter array of an older node has the defaults, a longer one of a newer is read too."""
    now = Measured(0.5, 0.25, 0.125, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0)
    data = bytes.fromhex(
        "99cb3fe0000000000000cb3fd0000000000000cb3fc0000000000000cb0000000000000000cb0000000000000000"
        "cb3ff0000000000000cb4000000000000000cb4008000000000000cb4010000000000000"
    )
    assert msgspec.msgpack.encode(now) == data
    older = msgspec.msgpack.encode(list(structs.astuple(now))[:6])
    assert msgspec.msgpack.decode(older, type=Measured) == Measured(0.5, 0.25, 0.125, uplink_bytes_per_s=1.0)
    newer = msgspec.msgpack.encode([*structs.astuple(now), 5.0])
    assert msgspec.msgpack.decode(newer, type=Measured) == now
