"""Doors in memory: IP addresses, routers that forward nothing, members that lie or say nothing, under trio's clock.

The rules of `net.dialback` are the real ones; only sockets are missing. Beside `net.memory`, whose transports take
their addresses from here where a test gives them a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from paceline.net import dialback
from paceline.net.dialback import DialBackDesk, Kind
from paceline.net.dialing import format_tcp
from paceline.wire.dialback import Dialed, DialMe
from paceline.wire.errors import DeadlineExceeded, PeerUnavailable
from paceline.wire.messages import PeerAddress

LATENCY_S = 0.02
"""A question, an answer, or a dial."""

PORTS = DialMe(4001, 4002)


@dataclass
class MemoryInternet:
    """All doors of one test. `dialled`: every dial, as ``(by, host, port)``."""

    doors: list[MemoryDoors] = field(default_factory=list)
    dialled: list[tuple[str, str, int]] = field(default_factory=list)

    def place(self, peer: str, host: str, *, ports: DialMe = PORTS, outside: str = "") -> MemoryDoors:
        """A process that listens on `ports` of `host`. `outside`: the address that its router shows to others."""
        made = MemoryDoors(self, peer, host, ports, outside or host)
        self.doors.append(made)
        return made

    def find(self, peer: str) -> MemoryDoors:
        """Raises PeerUnavailable."""
        for door in self.doors:
            if door.peer == peer:
                return door
        raise PeerUnavailable("nobody listens there", peer=peer)


class MemoryDoors:
    """Implements `dialback.Doors`. To be changed by tests: `reach` (ports that a dial from outside comes through to),
    `hosts`, `relays` (reserves for others), `silent`, `lie` (what it makes of its own honest answers).
    """

    def __init__(self, internet: MemoryInternet, peer: str, host: str, ports: DialMe, outside: str) -> None:
        self.peer = peer
        self.outside = outside
        self.ports = ports
        self.reach = {ports.control, ports.data} - {0}
        self.hosts: tuple[str, ...] = (host,)
        self.named = False
        self.relayed = False
        self.relays = False
        self.silent = False
        self.lie: Callable[[Dialed], Dialed] = lambda honest: honest
        self.address = PeerAddress(peer)
        self.desk = DialBackDesk(self._prove)
        self._internet = internet
        self.go_direct()

    async def look(self) -> tuple[str, ...]:
        """See `dialback.Doors`."""
        await trio.lowlevel.checkpoint()
        return self.hosts

    async def ask(self, member: PeerAddress, question: DialMe) -> Dialed:
        """See `dialback.Doors`."""
        other = self._internet.find(member.peer)
        with trio.move_on_after(dialback.ASK_S):
            await trio.sleep(LATENCY_S)
            if other.silent:
                await trio.sleep_forever()
            told = dialback.decode_question(dialback.encode(question))
            answer = other.lie(await other.desk.answer(self.peer, self.outside, told))
            await trio.sleep(LATENCY_S)
            return dialback.decode_answer(dialback.encode(answer))
        raise DeadlineExceeded("no answer", peer=member.peer)

    async def _prove(self, kind: Kind, host: str, port: int, peer: str) -> None:
        self._internet.dialled.append((self.peer, host, port))
        await trio.sleep(LATENCY_S)
        for door in self._internet.doors:
            if door.outside == host and port in door.reach and door.peer == peer:
                return
        raise PeerUnavailable("nobody of this key answers there", peer=peer)

    def go_direct(self, *, data: bool = True, also: Sequence[str] = ()) -> None:
        """See `dialback.Doors`."""
        self.relayed = False
        hosts = (*dict.fromkeys((*self.hosts, *also)),)
        control = tuple(format_tcp(host, self.ports.control) for host in hosts)
        own = tuple(format_tcp(host, self.ports.data) for host in hosts) if data and self.ports.data else ()
        self.address = PeerAddress(self.peer, control, own)

    async def go_relayed(self, members: Sequence[PeerAddress], *, data: bool = False) -> bool:
        """See `dialback.Doors`."""
        await trio.sleep(LATENCY_S)
        known = {door.peer for door in self._internet.doors if door.relays}
        relays = [member for member in members if member.peer in known]
        if not relays:
            return False
        self.relayed = True
        circuits = tuple(f"{relay.control[0]}/p2p/{relay.peer}/p2p-circuit" for relay in relays)
        self.address = PeerAddress(self.peer, circuits, self.address.data if data else ())
        return True
