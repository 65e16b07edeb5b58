"""Lanes over real sockets: what is put arrives, and nobody gets one that it has no key for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from paceline.net.direct import DirectChannel, DirectListener, Handshake
from paceline.net.identity import Identity
from paceline.net.lane import MARK, MAX_LANES, TICKET_S, InLane, Lanes, lane_id
from paceline.wire import limits
from paceline.wire.errors import PeerUnavailable, ProtocolViolation
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress

ASKER = PeerId("asker")


@dataclass
class Source:
    """A data port that feeds lanes. `now` only moves by hand."""

    now: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    at: PeerAddress = field(default_factory=lambda: PeerAddress("source"))

    def __post_init__(self) -> None:
        self.lanes = Lanes(lambda: self.now)

    async def put(self, request: int, total: int, data: bytes) -> None:
        while (lane := self.lanes.to(ASKER)) is None:
            await trio.lowlevel.checkpoint()
        room = lane.room()
        room.bytes[: len(data)] = data
        lane.put(request, total, room, len(data))

    async def until_refused(self, kind: str) -> None:
        while not self.refused[kind]:
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def source(deadline_s: float = 5.0) -> AsyncIterator[Source]:
    async def never(channel: DirectChannel) -> None:
        raise AssertionError("nobody makes a link here")

    made = Source()
    listener = DirectListener(
        Handshake(Identity.ephemeral()),
        never,
        lambda kind: made.refused.update([kind]),
        made.lanes,
        deadline_s=deadline_s,
    )
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(trio.serve_tcp, listener.serve, 0)
        port = sockets[0].socket.getsockname()[1]
        made.at = PeerAddress("source", data=(f"/ip4/127.0.0.1/tcp/{port}",))
        yield made
        nursery.cancel_scope.cancel()


async def dial(made: Source, key: bytes) -> InLane:
    return await Lanes().dial(made.at, key, 5.0)


async def raw(made: Source, data: bytes) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", int(made.at.data[0].rpartition("/")[2]))
    await stream.send_all(data)
    return stream


async def test_pieces_of_all_sizes_arrive_in_order() -> None:
    pieces = [os.urandom(n) for n in (1, 0, 70_000, limits.MAX_BLOCK_PIECE_BYTES, 5)]
    async with source() as made:
        lane = await dial(made, made.lanes.ticket(ASKER))
        for at, piece in enumerate(pieces):
            await made.put(at, len(piece) + 7, piece)
        for at, piece in enumerate(pieces):
            request, total, data = await lane.receive()
            assert (request, total, bytes(data)) == (at, len(piece) + 7, piece)
        await lane.aclose()
        while made.lanes.to(ASKER) is not None:
            await trio.lowlevel.checkpoint()
    assert not made.refused


async def refused(made: Source, key: bytes) -> None:
    lane = await dial(made, key)
    with pytest.raises(PeerUnavailable):
        await lane.receive()
    await lane.aclose()


async def test_a_key_that_nobody_gave_opens_nothing() -> None:
    async with source() as made:
        made.lanes.ticket(ASKER)
        await refused(made, os.urandom(32))
        assert made.refused == {"data_lane": 1}


async def test_a_key_opens_one_lane_once() -> None:
    async with source() as made:
        key = made.lanes.ticket(ASKER)
        lane = await dial(made, key)
        await made.put(1, 1, b"x")
        await lane.receive()
        await refused(made, key)
        await made.put(2, 1, b"y")
        assert bytes((await lane.receive())[2]) == b"y"
        assert made.refused == {"data_lane": 1}


async def test_a_key_ends_with_its_time_and_with_the_next_one() -> None:
    async with source() as made:
        first = made.lanes.ticket(ASKER)
        second = made.lanes.ticket(ASKER)
        await refused(made, first)
        made.now = TICKET_S + 1
        await refused(made, second)
        assert made.refused == {"data_lane": 2}


async def test_who_takes_the_name_without_the_key_learns_nothing() -> None:
    """The name crosses the wire in the clear. Whoever dials with it first gets records that he cannot open."""
    async with source() as made:
        key, secret = made.lanes.ticket(ASKER), os.urandom(4096)
        stream = await raw(made, MARK + lane_id(key))
        await made.put(1, len(secret), secret)
        record = b""
        while len(record) < 16 + len(secret) + 16:
            record += await stream.receive_some()
        assert secret[:16] not in record
        lane = InLane(stream, "source", os.urandom(32))
        await made.put(2, len(secret), secret)
        with pytest.raises(ProtocolViolation, match="authenticate"):
            await lane.receive()
        await stream.aclose()


@pytest.mark.parametrize("at", [0, 5, 15, 16, 40])
async def test_a_changed_byte_ends_the_lane(at: int) -> None:
    """Every byte of a record counts: request, size and length as well as the piece."""
    async with source() as made:
        key = made.lanes.ticket(ASKER)
        stream = await raw(made, MARK + lane_id(key))
        await made.put(1, 100, bytes(100))
        record = bytearray()
        while len(record) < 132:
            record += await stream.receive_some()
        record[at] ^= 1
        ours, theirs = trio.socket.socketpair()
        await trio.SocketStream(theirs).send_all(bytes(record))
        theirs.close()
        with pytest.raises((ProtocolViolation, PeerUnavailable)):
            await InLane(trio.SocketStream(ours), "source", key).receive()
        ours.close()
        await stream.aclose()


async def test_a_piece_over_the_limit_is_not_waited_for() -> None:
    ours, theirs = trio.socket.socketpair()
    await trio.SocketStream(theirs).send_all(bytes(12) + (limits.MAX_BLOCK_PIECE_BYTES + 1).to_bytes(4))
    with pytest.raises(ProtocolViolation, match="was announced"):
        await InLane(trio.SocketStream(ours), "source", bytes(32)).receive()
    ours.close()
    theirs.close()


async def test_who_says_half_a_name_is_turned_away_in_time() -> None:
    async with source(deadline_s=0.1) as made:
        stream = await raw(made, MARK + b"half")
        assert await stream.receive_some() == b""
        await made.until_refused("data_lane_late")
        await stream.aclose()


async def test_there_are_so_many_lanes_and_no_more() -> None:
    async with source() as made:
        lanes = []
        for at in range(MAX_LANES):
            peer = PeerId(f"peer {at}")
            lanes.append(await dial(made, made.lanes.ticket(peer)))
            while made.lanes.to(peer) is None:
                await trio.lowlevel.checkpoint()
        assert made.lanes.ticket(ASKER) == b""
        await lanes.pop().aclose()
        while not made.lanes.ticket(ASKER):
            await trio.lowlevel.checkpoint()
        for lane in lanes:
            await lane.aclose()
