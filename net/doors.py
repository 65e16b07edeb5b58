"""A process's own doors: the ports it listens on, the addresses it tells of them, and whether others find them open.

Knows interfaces, the dial-back protocol over libp2p streams, and reservations with relays. Refuses to know when to ask
and what to make of the answers (`node.reachability`), and who may ask how often (`net.dialback`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio
from libp2p.peer.id import ID

from paceline.net import dialback
from paceline.net.dialback import DialBackDesk, Kind
from paceline.net.dialing import format_tcp, reachable_hosts
from paceline.net.direct import Handshake, raw_connection
from paceline.net.hardening import translated
from paceline.net.relaying import CIRCUIT, STOP, Relayed
from paceline.net.streams import HostStream
from paceline.wire import limits
from paceline.wire.dialback import Dialed, DialMe
from paceline.wire.errors import DeadlineExceeded, PacelineError, PeerUnavailable, ProtocolViolation
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress

MOST_RELAYS = 2
"""Reservations that a process keeps whom its members cannot dial."""

MOST_TRIED = 16
"""Members that are asked for one."""

_LENGTH = struct.Struct(">H")


class Network(Protocol):
    """What is needed of the host: `net.host.Libp2pTransport`."""

    host: Any
    peer: PeerId

    async def open_stream(self, to: PeerAddress, protocol: str, *, timeout_s: float) -> HostStream: ...
    def serve_stream(self, protocol: str, handler: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class _Opened:
    """The ports, and where they listen."""

    host: str = ""
    announce: tuple[str, ...] = ()
    ports: DialMe = field(default_factory=DialMe)


class HostDoors:
    """Implements `dialback.Doors` for a libp2p host and its data port."""

    def __init__(self, network: Network, handshake: Handshake, dial_s: float = dialback.DIAL_S) -> None:
        self.address = PeerAddress(network.peer)
        """What others are told; nothing before `opened`."""
        self.desk = DialBackDesk(self._prove, dial_s)
        self.relayed = False
        self._network = network
        self._handshake = handshake
        self._dial_s = dial_s
        self._opened = _Opened()
        self._seen: tuple[str, ...] = ()
        self._circuits = Relayed(network)
        self._nursery: trio.Nursery | None = None
        self._reservations = trio.CancelScope()

    def opened(self, nursery: trio.Nursery, listen_host: str, announce: tuple[str, ...], ports: DialMe) -> None:
        """These ports are open now; reservations are kept in `nursery`. Announces them."""
        self._nursery = nursery
        self._opened = _Opened(listen_host, announce, ports)
        self._seen = reachable_hosts(listen_host)
        self._network.serve_stream(dialback.PROTOCOL, self.serve)
        self.go_direct()

    def closed(self) -> None:
        """Nothing is open any more."""
        self._nursery, self._opened, self.address = None, _Opened(), PeerAddress(self._network.peer)

    @property
    def ports(self) -> DialMe:
        return self._opened.ports

    @property
    def hosts(self) -> tuple[str, ...]:
        return self._opened.announce or self._seen

    async def look(self) -> tuple[str, ...]:
        """On a thread: a resolver may take seconds."""
        self._seen = await trio.to_thread.run_sync(reachable_hosts, self._opened.host)
        return self.hosts

    @property
    def named(self) -> bool:
        return bool(self._opened.announce)

    # --- what is announced --------------------------------------------------------------------------------------

    def go_direct(self, *, data: bool = True, also: Sequence[str] = ()) -> None:
        """See Doors."""
        self._reservations.cancel()
        self.relayed = False
        ports, hosts = self.ports, (*dict.fromkeys((*self.hosts, *also)),)
        self.address = PeerAddress(
            self._network.peer, _addresses(hosts, ports.control), _addresses(hosts, ports.data) if data else ()
        )

    async def go_relayed(self, members: Sequence[PeerAddress], *, data: bool = False) -> bool:
        """See Doors."""
        if self._nursery is None:
            return False
        scope = trio.CancelScope()
        self._network.serve_stream(STOP, self._circuits.answer)
        circuits: list[str] = []
        for member in members[:MOST_TRIED]:
            direct = [address for address in member.control if not dialback.is_circuit(address)]
            if not direct or len(circuits) == MOST_RELAYS:
                continue
            relay = PeerAddress(member.peer, tuple(direct))
            try:
                stream = await self._circuits.reserve(relay)
            except (PeerUnavailable, ProtocolViolation):
                continue
            self._nursery.start_soon(self._keep, relay, stream, scope)
            circuits.append(f"{direct[0]}/p2p/{relay.peer}{CIRCUIT}")
        if not circuits:
            return False
        self._reservations.cancel()
        self._reservations, self.relayed = scope, True
        own = _addresses(self.hosts, self.ports.data) if data else ()
        self.address = PeerAddress(self._network.peer, tuple(circuits), own)
        return True

    async def _keep(self, relay: PeerAddress, stream: HostStream, scope: trio.CancelScope) -> None:
        with scope:
            await self._circuits.keep_reserved(relay, stream)

    # --- the protocol -------------------------------------------------------------------------------------------

    async def ask(self, member: PeerAddress, question: DialMe) -> Dialed:
        """See Doors."""
        with trio.move_on_after(dialback.ASK_S):
            stream = await self._network.open_stream(member, dialback.PROTOCOL, timeout_s=dialback.ASK_S)
            try:
                await _write(stream, dialback.encode(question))
                return dialback.decode_answer(await _read(stream))
            finally:
                await _reset(stream)
        raise DeadlineExceeded(f"no answer within {dialback.ASK_S:g} s", peer=member.peer)

    async def serve(self, stream: HostStream) -> None:
        """One question on one inbound stream."""
        with trio.move_on_after(dialback.ASK_S):
            question = dialback.decode_question(await _read(stream))
            answer = await self.desk.answer(stream.peer, stream.remote_ip, question)
            await _write(stream, dialback.encode(answer))
            # Until the other side has read it, and hung up.
            await stream.read(1)

    async def _prove(self, kind: Kind, host: str, port: int, peer: str) -> None:
        try:
            socket = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise PeerUnavailable(f"cannot connect: {error}", peer=peer) from error
        if kind == "data":
            channel = await self._handshake.outbound(socket, PeerId(peer), self._dial_s)
            await channel.aclose()
            return
        upgrader = self._network.host.get_network().upgrader
        try:
            await upgrader.upgrade_security(raw_connection(socket), True, ID.from_string(peer))
        except Exception as error:
            raise translated(error, peer) from error
        finally:
            socket.socket.close()


def _addresses(hosts: Sequence[str], port: int) -> tuple[str, ...]:
    return tuple(format_tcp(host, port) for host in hosts)[: limits.MAX_ADDRESSES] if port else ()


async def _write(stream: HostStream, data: bytes) -> None:
    await stream.write(_LENGTH.pack(len(data)) + data)


async def _read(stream: HostStream) -> bytes:
    (size,) = _LENGTH.unpack(await _read_exactly(stream, _LENGTH.size))
    if size > limits.MAX_DIAL_BACK_BYTES:
        raise ProtocolViolation(
            f"dial-back message of {size} bytes, {limits.MAX_DIAL_BACK_BYTES} allowed", peer=stream.peer
        )
    return await _read_exactly(stream, size)


async def _read_exactly(stream: HostStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.read(size - len(data))
    return bytes(data)


async def _reset(stream: HostStream) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
        try:
            await stream.reset()
        except PacelineError:
            return
