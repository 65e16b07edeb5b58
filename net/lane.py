"""Lanes: pieces of blocks on a connection of their own, beside the link that asked for them.

Knows tickets, sockets and sealed records. Refuses to know what a block is and who may have it: the link's two ends
agree on a lane over the link, which is authenticated and confidential, and the lane's key travels there.

A link seals 64 KB at a time in ChaCha20-Poly1305, between copies and everything else; a lane seals a piece at once in
AES-256-GCM. Why, and what else was measured: docs/adr/0018-lanes.md.

::

    dialer → source    0xff | 16 bytes: which lane (SHA-256 of "paceline lane" and the key, cut)
    source → dialer    records: u32 request | u64 total | u32 length | the piece, sealed: length bytes and a tag of 16

Nonces count records; the 16 bytes in front are authenticated, too. A link's first byte is never 0xff: it begins a
length (`net.direct`), so both share the data port. A key opens one lane, once.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from paceline.net.dialing import AddressBook, Attempt, first_of, parse_tcp
from paceline.wire import limits
from paceline.wire.errors import DeadlineExceeded, PeerUnavailable, ProtocolViolation
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress

MARK = b"\xff"
KEY_BYTES = 32
TICKET_S = 10.0
"""How long a lane that was agreed on may be dialled."""

MAX_TICKETS = 256
MAX_LANES = 16
"""Lanes that this process feeds; more peers are answered on their links."""

IDLE_S = 60.0
STUCK_S = 30.0
"""A lane is closed after so long with nothing to send, or with a peer that takes nothing."""

_ID_BYTES = 16
_TAG_BYTES = 16
_HEAD = struct.Struct(">IQI")
_NONCE = struct.Struct("<4xQ")


def lane_id(key: bytes) -> bytes:
    """What a dialer shows in the clear: it names the key, and does not tell it."""
    return sha256(b"paceline lane" + key).digest()[:_ID_BYTES]


class Room:
    """Memory for one record, used again and again: fresh memory for each costs more than the cipher."""

    def __init__(self) -> None:
        self._record = memoryview(bytearray(_HEAD.size + limits.MAX_BLOCK_PIECE_BYTES + _TAG_BYTES))
        self.bytes = self._record[_HEAD.size : -_TAG_BYTES]
        """To be filled, from the front."""

    def sealed(self, cipher: AESGCM, nonce: int, request: int, total: int, length: int) -> memoryview:
        """The record of what was filled in, sealed in its place."""
        end = _HEAD.size + length
        _HEAD.pack_into(self._record, 0, request, total, length)
        head = self._record[: _HEAD.size]
        cipher.encrypt_into(
            _NONCE.pack(nonce), self._record[_HEAD.size : end], head, self._record[_HEAD.size : end + _TAG_BYTES]
        )
        return self._record[: end + _TAG_BYTES]


class OutLane:
    """The source's end: pieces wait here and leave in order. One task calls `run`."""

    def __init__(self, stream: trio.SocketStream, peer: PeerId, key: bytes) -> None:
        self.peer = peer
        self.waiting_bytes = 0
        self._stream = stream
        self._cipher = AESGCM(key)
        self._sent = 0
        self._waiting: deque[tuple[int, int, Room, int]] = deque()
        self._bell = trio.Event()
        self._spare: list[Room] = []

    def room(self) -> Room:
        """Where the next piece may be written, to be `put` then."""
        return self._spare.pop() if self._spare else Room()

    def put(self, request: int, total: int, room: Room, length: int) -> None:
        """Queue the first `length` bytes of a room as a piece; never blocks. The room is the lane's again."""
        self.waiting_bytes += length
        self._waiting.append((request, total, room, length))
        self._bell.set()

    async def run(self) -> None:
        """Until the peer closes the lane, takes nothing, or wants nothing more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            await self._send_all()
            nursery.cancel_scope.cancel()

    async def _watch(self, scope: trio.CancelScope) -> None:
        """The dialer has nothing more to say: its next word, or its end, ends the lane."""
        try:
            await self._stream.receive_some(1)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # That is its end as well.
            pass
        scope.cancel()

    async def _send_all(self) -> None:
        while True:
            if not self._waiting:
                self._bell = trio.Event()
                with trio.move_on_after(IDLE_S):
                    await self._bell.wait()
                if not self._waiting:
                    return
            request, total, room, length = self._waiting.popleft()
            record = room.sealed(self._cipher, self._sent, request, total, length)
            self._sent += 1
            with trio.move_on_after(STUCK_S) as scope:
                try:
                    await self._stream.send_all(record)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
            if scope.cancelled_caught:
                return
            self.waiting_bytes -= length
            self._spare.append(room)

    async def aclose(self) -> None:
        self._stream.socket.close()
        await trio.lowlevel.checkpoint()


class InLane:
    """The dialer's end."""

    def __init__(self, stream: trio.SocketStream, peer: str, key: bytes) -> None:
        self.peer = peer
        self._stream = stream
        self._cipher = AESGCM(key)
        self._received = 0
        self._room = memoryview(bytearray(limits.MAX_BLOCK_PIECE_BYTES + _TAG_BYTES))

    async def receive(self) -> tuple[int, int, memoryview]:
        """``(request, size of the block, bytes)`` of the next piece; the bytes are good until the next call.

        Raises PeerUnavailable at the end, ProtocolViolation for what the source did not seal. The lane is over then.
        """
        head = memoryview(bytearray(_HEAD.size))
        await self._fill(head)
        request, total, length = _HEAD.unpack(head)
        if length > limits.MAX_BLOCK_PIECE_BYTES:
            raise ProtocolViolation(f"a piece of {length} bytes was announced", peer=self.peer)
        sealed, plain = self._room[: length + _TAG_BYTES], self._room[:length]
        await self._fill(sealed)
        try:
            self._cipher.decrypt_into(_NONCE.pack(self._received), sealed, head, plain)
        except InvalidTag:
            raise ProtocolViolation("a piece on the lane does not authenticate", peer=self.peer) from None
        self._received += 1
        return request, total, plain

    async def _fill(self, room: memoryview) -> None:
        while room:
            try:
                got = await self._stream.socket.recv_into(room)
            except (OSError, trio.ClosedResourceError) as error:
                raise PeerUnavailable(f"the lane is closed: {error}", peer=self.peer) from error
            if not got:
                raise PeerUnavailable("the peer closed the lane", peer=self.peer)
            room = room[got:]

    async def aclose(self) -> None:
        self._stream.socket.close()
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class _Ticket:
    peer: PeerId
    key: bytes
    until: float


class Lanes:
    """All lanes of one process: those that it feeds, those that others may dial, and dialling."""

    def __init__(self, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._tickets: dict[bytes, _Ticket] = {}
        self._fed: dict[PeerId, OutLane] = {}
        self._book = AddressBook(now)

    def ticket(self, peer: PeerId) -> bytes:
        """A key for one lane that `peer` may dial within TICKET_S; an earlier one of its is void. Empty: no room."""
        now = self._now()
        kept = {name: it for name, it in self._tickets.items() if it.peer != peer and it.until > now}
        self._tickets = kept
        if len(kept) >= MAX_TICKETS or len(self._fed) >= MAX_LANES:
            return b""
        key = os.urandom(KEY_BYTES)
        kept[lane_id(key)] = _Ticket(peer, key, now + TICKET_S)
        return key

    def to(self, peer: PeerId) -> OutLane | None:
        """The lane that this process feeds for a peer, if it has dialled one."""
        return self._fed.get(peer)

    async def admit(self, stream: trio.SocketStream, first: bytes) -> OutLane:
        """An inbound connection whose `first` bytes begin with MARK. Raises PeerUnavailable, ProtocolViolation."""
        while len(first) < 1 + _ID_BYTES:
            more = await stream.receive_some(1 + _ID_BYTES - len(first))
            if not more:
                raise PeerUnavailable("left before it said which lane")
            first += more
        ticket = self._tickets.pop(first[1:], None)
        if ticket is None or ticket.until <= self._now() or len(self._fed) >= MAX_LANES:
            raise ProtocolViolation("dialled a lane that it has no ticket for")
        return OutLane(stream, ticket.peer, ticket.key)

    async def feed(self, lane: OutLane) -> None:
        """Send what is put on a lane, until it ends. A peer's newest lane is the one that is fed."""
        self._fed[lane.peer] = lane
        try:
            await lane.run()
        finally:
            if self._fed.get(lane.peer) is lane:
                del self._fed[lane.peer]

    async def dial(self, to: PeerAddress, key: bytes, timeout_s: float) -> InLane:
        """The lane that a peer has given this key for, at its data addresses. Raises PeerUnavailable."""
        attempts = [
            Attempt(address, partial(self._dial, to.peer, address, key)) for address in self._book.order(to.data)
        ]
        with trio.move_on_after(timeout_s):
            return await first_of(attempts, self._book, InLane.aclose, peer=to.peer)
        raise DeadlineExceeded(f"no lane within {timeout_s:g} s", peer=to.peer)

    async def _dial(self, peer: str, address: str, key: bytes) -> InLane:
        host, port = parse_tcp(address)
        try:
            stream = await trio.open_tcp_stream(host, port)
            await stream.send_all(MARK + lane_id(key))
        except (OSError, trio.BrokenResourceError) as error:
            raise PeerUnavailable(f"cannot connect: {error}", peer=peer) from error
        return InLane(stream, peer, key)
