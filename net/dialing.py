"""Which address to try, in what order, and how several are tried at once.

Knows addresses as text, and failures. Refuses to know what a connection is.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from paceline.wire.errors import PacelineError, PeerUnavailable, ProtocolViolation

T = TypeVar("T")

STAGGER_S = 0.3
"""A next address is tried when the one before has failed, or has said nothing for this long (RFC 8305's idea)."""

FORGET_S = 60.0
_FIRST_S = 1.0
_MAX_ADDRESSES = 4096


def parse_tcp(address: str) -> tuple[str, int]:
    """``/ip4/1.2.3.4/tcp/4001[/…]`` → host and port; also ip6, dns, dns4, dns6. Raises ProtocolViolation."""
    parts = address.split("/")
    if len(parts) < 5 or parts[0] or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6") or parts[3] != "tcp":
        raise ProtocolViolation(f"{address!r} is not a TCP address")
    host, port = parts[2], parts[4]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536) or not host:
        raise ProtocolViolation(f"{address!r} has no valid host and port")
    if parts[1] in ("ip4", "ip6"):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ProtocolViolation(f"{address!r} has no valid IP address") from None
    return host, int(port)


def format_tcp(host: str, port: int) -> str:
    """Host and port → multiaddr text."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return f"/dns/{host}/tcp/{port}"
    return f"/ip{version}/{host}/tcp/{port}"


def reachable_hosts(listen_host: str) -> tuple[str, ...]:
    """What others can dial where we listen on `listen_host`: for a wildcard, this machine's addresses.

    Without a route to anywhere that is the loopback address.
    """
    if listen_host not in ("0.0.0.0", "::", ""):
        return (listen_host,)
    found: dict[str, None] = {}
    # A UDP socket's connect sends nothing, and tells which of our addresses the route would use.
    probes = [(socket.AF_INET, "192.0.2.1")] + ([(socket.AF_INET6, "2001:db8::1")] if listen_host == "::" else [])
    for family, target in probes:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                found[probe.getsockname()[0]] = None
        except OSError:
            continue
    try:
        for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET):
            found[str(info[4][0])] = None
    except OSError:
        pass
    real = tuple(host for host in found if not ipaddress.ip_address(host).is_loopback)
    return real or ("127.0.0.1",)


class AddressBook:
    """Remembers failures by address: who failed lately is tried last."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failed: dict[str, tuple[int, float]] = {}

    def order(self, addresses: Iterable[str]) -> list[str]:
        """As given, but those still cooling down at the end; none is ever left out."""
        now = self._now()
        return sorted(dict.fromkeys(addresses), key=lambda address: self._failed.get(address, (0, 0.0))[1] > now)

    def failed(self, address: str) -> None:
        """Cool down: 1 s, doubled with each failure in a row, at most FORGET_S."""
        count = self._failed.pop(address, (0, 0.0))[0]
        self._failed[address] = (count + 1, self._now() + min(_FIRST_S * 2.0**count, FORGET_S))
        if len(self._failed) > _MAX_ADDRESSES:
            del self._failed[next(iter(self._failed))]

    def worked(self, address: str) -> None:
        self._failed.pop(address, None)


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """One way to reach a peer. `alone_s`: how long the next way waits for it."""

    name: str
    call: Callable[[], Awaitable[T]]
    alone_s: float = STAGGER_S


async def first_of(
    attempts: Sequence[Attempt[T]],
    book: AddressBook,
    discard: Callable[[T], Awaitable[None]],
    *,
    peer: str,
) -> T:
    """The first attempt that succeeds; each starts `alone_s` after the previous, or at once when that has failed.

    `discard` closes a result that came too late. Raises PeerUnavailable that names what
    was tried and why it failed.
    """
    won: list[T] = []
    errors: list[str] = []

    async def attempt(name: str, call: Callable[[], Awaitable[T]], over: trio.Event) -> None:
        try:
            result = await call()
        except PacelineError as error:
            book.failed(name)
            errors.append(f"{name}: {error.message}")
            over.set()
            return
        book.worked(name)
        if won:
            await discard(result)
        else:
            won.append(result)
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for each in attempts:
                over = trio.Event()
                nursery.start_soon(attempt, each.name, each.call, over)
                with trio.move_on_after(each.alone_s):
                    await over.wait()
    except BaseException:
        for result in won:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STAGGER_S):
                await discard(result)
        raise
    if won:
        return won[0]
    raise PeerUnavailable("; ".join(errors) or "no address to dial", peer=peer)
