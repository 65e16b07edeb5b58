"""Being reached through a relay, and being one: libp2p's circuit relay v2 on the wire, with our own bounds.

Knows reservations and circuits. Refuses to know what passes through a circuit: the two ends authenticate each other and
encrypt (Noise) over it, and a relay copies bytes. From the specification (libp2p specs, relay/circuit-v2) come the
protocol names, the messages and the states; the library's own implementation is not used (docs/adr/0006-relay.md).

A peer that nobody can dial keeps a reservation with a relay, and announces ``<relay>/p2p/<relay id>/p2p-circuit``. Who
dials that asks the relay for a circuit; the relay opens a stream to the peer over the connection that the peer made.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import trio
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import (
    CONNECTION_FAILED,
    NO_RESERVATION,
    OK,
    RESERVATION_REFUSED,
    RESOURCE_LIMIT_EXCEEDED,
    HopMessage,
    Status,
    StopMessage,
)
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as Named
from multiaddr import Multiaddr

from paceline.net.hardening import translated
from paceline.net.streams import HostStream
from paceline.wire.errors import DeadlineExceeded, InvalidRequest, PacelineError, PeerUnavailable, ProtocolViolation
from paceline.wire.messages import PeerAddress

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
CIRCUIT = "/p2p-circuit"
PROTOCOLS = (HOP, STOP)

_REASONS = {
    RESERVATION_REFUSED: "it takes no more reservations",
    RESOURCE_LIMIT_EXCEEDED: "it has too many circuits",
    CONNECTION_FAILED: "it could not reach the peer",
    NO_RESERVATION: "the peer has no reservation there",
}

STEP_S = 5.0
"""One message, one stream, or one handshake over a circuit."""

RESERVED_S = 60.0
RENEW_S = 20.0
LOOK_S = 0.5
RETRY_S = (0.25, 5.0)
MAX_RESERVATIONS = 256
MAX_CIRCUITS = 512
MAX_CIRCUITS_PER_PEER = 32
"""Asked for by one peer, and leading to one peer."""

_MAX_MESSAGE_BYTES = 4096
_COPY_BYTES = 64 * 1024

M = TypeVar("M")


class Network(Protocol):
    """What is needed of the host: `net.host.Libp2pTransport`."""

    host: Any

    async def open_stream(self, to: PeerAddress, protocol: str, *, timeout_s: float) -> HostStream: ...


def through(address: str) -> PeerAddress:
    """The relay that a circuit address names, or that ``<address>/p2p/<peer id>`` is. Raises InvalidRequest."""
    where, found, peer = address.removesuffix(CIRCUIT).rpartition("/p2p/")
    if not found or not where.startswith("/") or not peer or "/" in peer:
        raise InvalidRequest(
            f"{address!r} names no relay", cure="it looks like /ip4/203.0.113.5/tcp/4001/p2p/12D3KooW…"
        )
    return PeerAddress(peer, (where,))


class Relay:
    """The relay's side. Reservations and circuits are bounded; what they carry is not looked at."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._reserved: dict[str, float] = {}
        self._circuits: Counter[str] = Counter()
        self._open = 0

    def statistics(self) -> dict[str, int]:
        """Open circuits and live reservations."""
        self._forget_expired()
        return {"relay_circuits": self._open, "relay_reservations": len(self._reserved)}

    async def serve(self, stream: HostStream) -> None:
        """One HOP stream: a reservation, held while the stream lives, or a circuit, to its end."""
        with _step(stream.peer):
            request = await _read(stream, HopMessage)
        if request.type == HopMessage.RESERVE:
            await self._reserve(stream)
        elif request.type == HopMessage.CONNECT:
            await self._connect(stream, str(ID(request.peer.id)))
        else:
            raise ProtocolViolation(f"a HOP message of type {request.type}", peer=stream.peer)

    async def _reserve(self, stream: HostStream) -> None:
        self._forget_expired()
        if len(self._reserved) >= MAX_RESERVATIONS and stream.peer not in self._reserved:
            await _refuse(stream, RESERVATION_REFUSED)
            return
        self._reserved[stream.peer] = trio.current_time() + RESERVED_S
        expire = int(time.time() + RESERVED_S)
        answer = HopMessage(type=HopMessage.STATUS, status=OK)
        answer.reservation.expire = expire
        await _write(stream, answer)
        with trio.move_on_after(RESERVED_S):
            await _ended(stream)

    async def _connect(self, stream: HostStream, target: str) -> None:
        self._forget_expired()
        ends = (f"from {stream.peer}", f"to {target}")
        if target not in self._reserved:
            await _refuse(stream, NO_RESERVATION)
            return
        if self._open >= MAX_CIRCUITS or any(self._circuits[end] >= MAX_CIRCUITS_PER_PEER for end in ends):
            await _refuse(stream, RESOURCE_LIMIT_EXCEEDED)
            return
        self._open += 1
        self._circuits.update(ends)
        try:
            await self._carry(stream, target)
        finally:
            self._open -= 1
            self._circuits.subtract(ends)
            self._circuits += Counter()  # drops the zeros

    async def _carry(self, stream: HostStream, target: str) -> None:
        try:
            other = await self._network.open_stream(PeerAddress(target), STOP, timeout_s=STEP_S)
        except PeerUnavailable:
            self._reserved.pop(target, None)
            await _refuse(stream, CONNECTION_FAILED)
            return
        try:
            with _step(target):
                source = Named(id=ID.from_string(stream.peer).to_bytes())
                await _write(other, StopMessage(type=StopMessage.CONNECT, peer=source))
                answer = await _read(other, StopMessage)
            if answer.status != OK:
                await _refuse(stream, CONNECTION_FAILED)
                return
            await _write(stream, HopMessage(type=HopMessage.STATUS, status=OK))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_copy, stream, other, nursery.cancel_scope)
                nursery.start_soon(_copy, other, stream, nursery.cancel_scope)
        finally:
            await _reset(other)

    def _forget_expired(self) -> None:
        now = trio.current_time()
        self._reserved = {peer: until for peer, until in self._reserved.items() if until > now}


class Relayed:
    """The two ends' side: dialling through relays, and being dialled."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def dial(self, peer: str, address: str) -> Any:
        """A libp2p connection to `peer` over a circuit. Raises PeerUnavailable, ProtocolViolation."""
        relay = through(address)
        stream = await self._network.open_stream(relay, HOP, timeout_s=STEP_S)
        pipe = _Pipe(stream)
        done = False
        try:
            with _step(peer):
                await _write(
                    stream, HopMessage(type=HopMessage.CONNECT, peer=Named(id=ID.from_string(peer).to_bytes()))
                )
                _check(await _read(stream, HopMessage), relay.peer)
                raw = _raw(pipe, address, initiator=True)
                try:
                    connection = await self._network.host.upgrade_outbound_connection(raw, ID.from_string(peer))
                except Exception as error:
                    raise translated(error, peer) from error
            done = True
            return connection
        finally:
            if not done:
                await pipe.close()

    async def answer(self, stream: HostStream) -> None:
        """One STOP stream: somebody dials us through the relay at its other end. Returns when the circuit is over."""
        with _step(stream.peer):
            request = await _read(stream, StopMessage)
            if request.type != StopMessage.CONNECT:
                raise ProtocolViolation(f"a STOP message of type {request.type}", peer=stream.peer)
            await _write(stream, StopMessage(type=StopMessage.STATUS, status=OK))
            pipe = _Pipe(stream)
            raw = _raw(pipe, f"/p2p/{stream.peer}{CIRCUIT}", initiator=False)
            try:
                await self._network.host.upgrade_inbound_connection(raw, Multiaddr(f"/p2p/{stream.peer}{CIRCUIT}"))
            except Exception as error:
                raise translated(error, str(ID(request.peer.id))) from error
        await pipe.over.wait()

    async def reserve(self, relay: PeerAddress) -> HostStream:
        """A reservation; ask again within RENEW_S. The stream ends with it. Raises PeerUnavailable."""
        stream = await self._network.open_stream(relay, HOP, timeout_s=STEP_S)
        done = False
        try:
            with _step(relay.peer):
                await _write(stream, HopMessage(type=HopMessage.RESERVE))
                _check(await _read(stream, HopMessage), relay.peer)
            done = True
            return stream
        finally:
            if not done:
                await _reset(stream)

    async def keep_reserved(self, relay: PeerAddress, stream: HostStream) -> None:
        """Renew for ever, beginning with the reservation of `stream`."""
        pause = RETRY_S[0]
        while True:
            with trio.move_on_after(RENEW_S):
                await _ended(stream)
                # A relay may close the stream and keep the reservation. Of one that died, the connection ends too, but
                # maybe after the stream.
                while self._network.host.get_network().get_connections(ID.from_string(relay.peer)):
                    await trio.sleep(LOOK_S)
            await _reset(stream)
            while True:
                try:
                    stream = await self.reserve(relay)
                except (PeerUnavailable, ProtocolViolation):
                    await trio.sleep(pause)
                    pause = min(2 * pause, RETRY_S[1])
                    continue
                pause = RETRY_S[0]
                break


class _Pipe:
    """A circuit as libp2p reads a socket."""

    def __init__(self, stream: HostStream) -> None:
        self.over = trio.Event()
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        try:
            return await self._stream.read(n or _COPY_BYTES)
        except PacelineError:
            self.over.set()
            return b""

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except PacelineError as error:
            self.over.set()
            raise IOException(error.message) from error

    async def close(self) -> None:
        self.over.set()
        await _reset(self._stream)

    def get_remote_address(self) -> None:
        return None


def _raw(pipe: _Pipe, address: str, *, initiator: bool) -> RawConnection:
    return RawConnection(pipe, initiator, ConnectionType.RELAYED, [Multiaddr(address)])


@contextmanager
def _step(peer: str) -> Iterator[None]:
    """DeadlineExceeded where a step with `peer` takes longer than STEP_S."""
    with trio.move_on_after(STEP_S) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlineExceeded(f"no answer within {STEP_S:g} s over a relay", peer=peer)


def _check(answer: Any, relay: str) -> None:
    if answer.type != HopMessage.STATUS:
        raise ProtocolViolation(f"a HOP message of type {answer.type} for an answer", peer=relay)
    if answer.status != OK:
        raise PeerUnavailable(f"the relay refuses: {_REASONS.get(answer.status, answer.status)}", peer=relay)


async def _refuse(stream: HostStream, status: Status.ValueType) -> None:
    await _write(stream, HopMessage(type=HopMessage.STATUS, status=status))
    with trio.move_on_after(STEP_S):
        # Until the other side has read it, and hung up.
        await _ended(stream)


async def _ended(stream: HostStream) -> None:
    try:
        await stream.read(1)
    except PacelineError:
        return


async def _copy(source: HostStream, to: HostStream, both: trio.CancelScope) -> None:
    try:
        while True:
            await to.write(await source.read(_COPY_BYTES))
    except PacelineError:
        both.cancel()


async def _reset(stream: HostStream) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
        try:
            await stream.reset()
        except PacelineError:
            return


async def _write(stream: HostStream, message: Any) -> None:
    body = message.SerializeToString()
    size, prefix = len(body), bytearray()
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    await stream.write(bytes(prefix) + body)


async def _read(stream: HostStream, kind: type[M]) -> Any:
    """One message behind its length, an unsigned varint. Raises ProtocolViolation."""
    size = 0
    for shift in (0, 7):
        byte = (await stream.read(1))[0]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise ProtocolViolation(f"a relay message of over {_MAX_MESSAGE_BYTES} bytes", peer=stream.peer)
    if size > _MAX_MESSAGE_BYTES:
        raise ProtocolViolation(f"a relay message of {size} bytes", peer=stream.peer)
    data = bytearray()
    while len(data) < size:
        data += await stream.read(size - len(data))
    message: Any = kind()
    try:
        message.ParseFromString(bytes(data))
    except Exception as error:
        raise ProtocolViolation(f"not a relay message: {error}", peer=stream.peer) from error
    return message
