"""Dial-back: a member tells whether it can dial the asker, so that nobody announces addresses that lead nowhere.

A question names ports and no host: the asked member dials the IP address from which the question itself came, and
nothing else (AutoNAT v1 of libp2p has the same rule, for addresses in the question). So a third party cannot be named,
and whoever asks can only have his own address dialled. A dial is a new TCP connection and a Noise handshake that must
prove the asker's key; nothing of the asker's choosing is sent. What failed is told when the time is up, however it
failed: a port that is closed, filtered or another's looks the same.

Knows the rules and the count of votes. Refuses to know sockets (`net.doors`) and when to ask
(`node.reachability`). Docs: docs/adr/0024-dial-back.md.
"""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import trio

from paceline.net.dialing import parse_tcp
from paceline.net.metering import Meter
from paceline.wire import limits
from paceline.wire.codec import Buffer, decode_header, encode_header
from paceline.wire.dialback import Dialed, DialMe
from paceline.wire.errors import Malformed, Overloaded, PacelineError, Unreachable
from paceline.wire.messages import PeerAddress

PROTOCOL = "/paceline/dialback/1"

DIAL_S = 4.0
"""What the asked member's dials may take together; also when failures are told."""

ASK_S = DIAL_S + 4.0
"""One question and its answer."""

MAX_ASKED = 3
"""Members asked at once: one that lies is outvoted."""

MAX_DIALS = 16
"""Questions that one member works on at a time, whoever asked."""

PEER_RATE, PEER_BURST = 1 / 15.0, 4.0
HOST_RATE, HOST_BURST = 1.0, 32.0
"""Questions a second from one peer, and from one IP address: identities cost nothing, addresses do."""

Kind = Literal["control", "data"]


def decode_question(data: Buffer) -> DialMe:
    """Raises Malformed."""
    _check_size(data)
    question: DialMe = decode_header(data, DialMe)
    return question


def decode_answer(data: Buffer) -> Dialed:
    """Raises Malformed."""
    _check_size(data)
    answer: Dialed = decode_header(data, Dialed)
    return answer


def encode(message: DialMe | Dialed) -> bytes:
    """At most limits.MAX_DIAL_BACK_BYTES."""
    return encode_header(message)


def _check_size(data: Buffer) -> None:
    if len(data) > limits.MAX_DIAL_BACK_BYTES:
        raise Malformed(f"dial-back message of {len(data)} bytes, {limits.MAX_DIAL_BACK_BYTES} allowed")


# --- the asked member's side --------------------------------------------------------------------------------------

Prove = Callable[[Kind, str, int, str], Awaitable[None]]
"""``(kind, host, port, peer)``: dial, and see `peer` prove its key. Raises PacelineError."""


class DialBackDesk:
    """Answers questions within the bounds above."""

    def __init__(self, prove: Prove, dial_s: float = DIAL_S) -> None:
        self.counts: Counter[str] = Counter()
        self._prove = prove
        self._dial_s = dial_s
        self._peers = Meter(PEER_RATE, PEER_BURST, "asks to be dialled too often")
        self._hosts = Meter(HOST_RATE, HOST_BURST, "asks to be dialled too often")
        self._busy = 0

    async def answer(self, peer: str, host: str | None, question: DialMe) -> Dialed:
        """`peer` asks over a connection from the IP address `host`; None: over a circuit, which shows no address."""
        host = plain_host(host)
        if host is None or (reason := self._why_not(peer, host, question)):
            reason = reason if host is not None else "no_address"
            self.counts[f"dial_backs_{reason}"] += 1
            return Dialed(refused=reason)
        self.counts["dial_backs"] += 1
        self._busy += 1
        try:
            return await self._dialled(peer, host, question)
        finally:
            self._busy -= 1

    def _why_not(self, peer: str, host: str, question: DialMe) -> str:
        if not question.control and not question.data:
            return "no_port"
        if self._busy >= MAX_DIALS:
            return "busy"
        try:
            self._hosts.take(host, trio.current_time())
            self._peers.take(peer, trio.current_time())
        except Overloaded:
            return "too_often"
        return ""

    async def _dialled(self, peer: str, host: str, question: DialMe) -> Dialed:
        ports: dict[Kind, int] = {"control": question.control, "data": question.data}
        proved: set[Kind] = set()

        async def prove(kind: Kind, port: int) -> None:
            try:
                await self._prove(kind, host, port, peer)
            except PacelineError:
                # Told when the time is up, as silence is.
                await trio.sleep_forever()
            proved.add(kind)

        with trio.move_on_after(self._dial_s):
            async with trio.open_nursery() as nursery:
                for kind, port in ports.items():
                    if port:
                        nursery.start_soon(prove, kind, port)
        return Dialed(host, "control" in proved, "data" in proved)


def plain_host(host: str | None) -> str | None:
    """An IP address in its one spelling; None for what is none, or may not be dialled."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return None if address.is_multicast or address.is_unspecified else str(address)


# --- the asker's side ---------------------------------------------------------------------------------------------


class Asking(Protocol):
    """The way to a member. `net.doors` over libp2p, `net.memory_doors` in memory."""

    async def ask(self, member: PeerAddress, question: DialMe) -> Dialed:
        """Within ASK_S. Raises PeerUnavailable, ProtocolViolation."""
        ...


class Doors(Protocol):
    """What a node's reachability check needs. Real: `HostDoors`; in memory: `net.memory_doors.MemoryDoors`."""

    @property
    def address(self) -> PeerAddress:
        """What others are told."""
        ...

    @property
    def ports(self) -> DialMe:
        """Ports that this process listens on, 0 being none."""
        ...

    @property
    def relayed(self) -> bool:
        """Whether it tells others to come through relays."""
        ...

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts of its own that it would announce: the interfaces' when last looked at, or those its owner named."""
        ...

    async def look(self) -> tuple[str, ...]:
        """The `hosts` of now."""
        ...

    @property
    def named(self) -> bool:
        """Whether its owner named them."""
        ...

    async def ask(self, member: PeerAddress, question: DialMe) -> Dialed:
        """See Asking."""
        ...

    def go_direct(self, *, data: bool = True, also: Sequence[str] = ()) -> None:
        """Announce the own ports, on `hosts` and on the hosts `also`; `data` False: without the data port."""
        ...

    async def go_relayed(self, members: Sequence[PeerAddress], *, data: bool = False) -> bool:
        """Announce circuits through up to a few of those `members` who relay; with `data`, the data port as well.
        False, and nothing changed, where none of them does.
        """
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the asked make of it together. None: not asked for, nobody answered, or as many say yes as no.

    `hosts`: where somebody reached the asker, by how many say so, most first.
    """

    control: bool | None
    data: bool | None
    hosts: tuple[tuple[str, int], ...]
    asked: int
    answered: int


def verdict(question: DialMe, answers: Sequence[Dialed | None]) -> Verdict:
    """The majority of those who dialled. None among the `answers`: the member did not answer, or broke the rules."""
    told = [answer for answer in answers if answer is not None and not answer.refused]
    reached = Counter(plain_host(answer.host) for answer in told if answer.control or answer.data)
    hosts = tuple((host, count) for host, count in sorted(reached.items(), key=str) if host is not None)
    return Verdict(
        control=_majority([answer.control for answer in told]) if question.control else None,
        data=_majority([answer.data for answer in told]) if question.data else None,
        hosts=tuple(sorted(hosts, key=lambda it: -it[1])),
        asked=len(answers),
        answered=len(told),
    )


def _majority(votes: Sequence[bool]) -> bool | None:
    yes = sum(votes)
    return None if 2 * yes == len(votes) else 2 * yes > len(votes)


def choose(members: Sequence[PeerAddress], rng: random.Random) -> list[PeerAddress]:
    """Whom to ask: at most MAX_ASKED that have an address of their own. Where some stand in the open internet only
    those, since from beside us everybody is reached; of one host at most one, while there are others.
    """
    shuffled = [member for member in members if _hosts(member)]
    rng.shuffle(shuffled)
    outside = [member for member in shuffled if any(_is_global(host) for host in _hosts(member))]
    seen: set[str] = set()
    first: list[PeerAddress] = []
    others: list[PeerAddress] = []
    for member in outside or shuffled:
        (others if seen & _hosts(member) else first).append(member)
        seen |= _hosts(member)
    return (first + others)[:MAX_ASKED]


async def examine(door: Asking, members: Sequence[PeerAddress], question: DialMe) -> Verdict:
    """Ask all `members` at once; within ASK_S."""
    answers: list[Dialed | None] = [None] * len(members)

    async def ask(place: int) -> None:
        try:
            answers[place] = await door.ask(members[place], question)
        except PacelineError:
            return

    with trio.move_on_after(ASK_S):
        async with trio.open_nursery() as nursery:
            for place in range(len(members)):
                nursery.start_soon(ask, place)
    return verdict(question, answers)


def leads_here(host: str) -> bool:
    """Whether an IP address means the same machine to everybody: from this machine's own members we are 127.0.0.1."""
    address = ipaddress.ip_address(host)
    return not (address.is_loopback or address.is_link_local)


def unreachable(port: int) -> Unreachable:
    """What is wrong where nobody comes through, and its cure."""
    return Unreachable(
        f"nobody outside can reach port {port}",
        cure=f"open TCP port {port} in firewall and router (--port chooses it, --announce names the router's address), "
        "or serve through a relay: paceline node --relay",
    )


def _hosts(member: PeerAddress) -> set[str]:
    """Hosts of its direct addresses."""
    found = set()
    for address in member.control:
        if is_circuit(address):
            continue
        try:
            found.add(parse_tcp(address)[0])
        except PacelineError:
            found.add(address)
    return found


def is_circuit(address: str) -> bool:
    """Whether an address leads through a relay."""
    return address.endswith("/p2p-circuit")


def is_direct(at: PeerAddress) -> bool:
    """Whether somebody can be dialled without a relay. Who cannot is no server of the DHT."""
    return any(not is_circuit(address) for address in at.control)


def _is_global(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return True  # a name, which somebody gave it so that others find it
