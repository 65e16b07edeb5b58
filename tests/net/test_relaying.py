"""Circuits on real sockets: a process without a port is reached, end to end authenticated, within bounds, and again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from paceline.net import relaying
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.relaying import CIRCUIT, HOP, PROTOCOLS, through
from paceline.net.transport import Channel
from paceline.wire.errors import InvalidRequest, PacelineError, PeerUnavailable
from paceline.wire.messages import PeerAddress


async def echo(channel: Channel) -> None:
    while True:
        await channel.send([bytes(message) for message in await channel.receive()])


async def ignore(channel: Channel) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def peer(config: NetConfig, who: Identity | None = None) -> AsyncIterator[Libp2pTransport]:
    transport = Libp2pTransport(who or Identity.ephemeral(), config)
    async with transport.run(echo):
        yield transport


def at(relay: Libp2pTransport) -> str:
    return f"{relay.address.control[0]}/p2p/{relay.peer}"


@asynccontextmanager
async def circuit() -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport, Libp2pTransport]]:
    """A relay, a process that only the relay reaches, and one that dials."""
    with trio.fail_after(60):
        async with (
            peer(NetConfig(relay=True)) as relay,
            peer(NetConfig(relays=(at(relay),))) as hidden,
            peer(NetConfig(listens=False)) as dialer,
        ):
            yield relay, hidden, dialer


async def says(channel: Channel, data: bytes) -> None:
    await channel.send([data])
    assert [bytes(message) for message in await channel.receive()] == [data]


async def test_a_process_without_a_port_is_reached() -> None:
    async with circuit() as (relay, hidden, dialer):
        assert hidden.address == PeerAddress(hidden.peer, (f"{at(relay)}{CIRCUIT}",))
        assert not hidden.host.get_transport_addrs()
        channel = await dialer.dial(hidden.address, timeout_s=10)
        assert channel.peer == hidden.peer
        await says(channel, b"through the relay")
        await says(channel, bytes(3_000_000))
        assert relay.statistics()["relay_circuits"] == 1
        again = await hidden.dial(PeerAddress(dialer.peer, ("/ip4/127.0.0.1/tcp/1",)), timeout_s=10)
        await says(again, b"back over the same connection")


async def test_the_relay_cannot_pass_itself_off_as_the_peer() -> None:
    """What answers at the circuit's other end must hold the peer's key."""
    async with circuit() as (relay, hidden, dialer):
        stranger = Identity.ephemeral().peer
        reserved = relay._relay._reserved  # as a lying relay would: it leads the circuit for one peer to another
        reserved[stranger] = trio.current_time() + 60
        connections = relay.host.get_network().connections
        for known in list(connections):
            if str(known) == hidden.peer:
                connections[type(known).from_string(stranger)] = connections[known]
        with pytest.raises(PacelineError):
            await dialer.dial(PeerAddress(stranger, (f"{at(relay)}{CIRCUIT}",)), timeout_s=10)
        channel = await dialer.dial(hidden.address, timeout_s=10)
        await says(channel, b"the honest way still works")


async def test_without_a_reservation_the_relay_says_so() -> None:
    async with circuit() as (relay, _, dialer):
        nobody = Identity.ephemeral().peer
        with pytest.raises(PeerUnavailable, match="no reservation"):
            await dialer.dial(PeerAddress(nobody, (f"{at(relay)}{CIRCUIT}",)), timeout_s=10)


async def test_who_is_no_relay_carries_nothing() -> None:
    async with peer(NetConfig()) as no_relay:
        with pytest.raises(PeerUnavailable):
            async with peer(NetConfig(relays=(at(no_relay),))):
                pass


async def test_circuits_and_reservations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying, "MAX_CIRCUITS", 0)
    monkeypatch.setattr(relaying, "MAX_RESERVATIONS", 1)
    async with circuit() as (relay, hidden, dialer):
        with pytest.raises(PeerUnavailable, match="too many circuits"):
            await dialer.dial(hidden.address, timeout_s=10)
        with pytest.raises(PeerUnavailable, match="no more reservations"):
            async with peer(NetConfig(relays=(at(relay),))):
                pass


async def test_a_circuit_ends_with_its_ends() -> None:
    async with circuit() as (relay, hidden, dialer):
        channel = await dialer.dial(hidden.address, timeout_s=10)
        await says(channel, b"open")
        for connection in list(dialer.host.get_network().get_connections()):
            await connection.close()
        while relay.statistics()["relay_circuits"]:
            await trio.sleep(0.01)


async def test_garbage_ends_the_stream_and_nothing_else() -> None:
    async with circuit() as (relay, hidden, dialer):
        for data in (b"\xff\xff\xff", b"\x05hello", b"\x02\x08\x07"):
            stream = await dialer.open_stream(relay.address, HOP, timeout_s=10)
            await stream.write(data)
            with pytest.raises(PacelineError):
                await stream.read(1)
        await says(await dialer.dial(hidden.address, timeout_s=10), b"still there")


async def test_a_reservation_is_renewed_after_the_relay_restarted() -> None:
    who = Identity.ephemeral()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            stop, port = trio.Event(), list[int]()

            async def first(task_status: trio.TaskStatus[str]) -> None:
                async with peer(NetConfig(relay=True), who) as relay:
                    port.append(int(relay.address.control[0].rpartition("/")[2]))
                    task_status.started(at(relay))
                    await stop.wait()

            where = await nursery.start(first)
            async with peer(NetConfig(relays=(where,))) as hidden, peer(NetConfig(listens=False)) as dialer:
                stop.set()
                while nursery.child_tasks:
                    await trio.sleep(0.01)
                async with peer(NetConfig(relay=True, control_port=port[0]), who) as relay:
                    while not relay.statistics()["relay_reservations"]:
                        await trio.sleep(0.01)
                    await says(await dialer.dial(hidden.address, timeout_s=10), b"again")


def test_what_names_no_relay_is_refused() -> None:
    assert (
        through("/dns/a/tcp/1/p2p/x/p2p-circuit")
        == through("/dns/a/tcp/1/p2p/x")
        == PeerAddress("x", ("/dns/a/tcp/1",))
    )
    for text in ("", "/ip4/192.0.2.1/tcp/1", "nowhere/p2p/x", "/ip4/192.0.2.1/tcp/1/p2p/"):
        with pytest.raises(InvalidRequest, match="names no relay"):
            through(text)
    assert all(protocol.startswith("/libp2p/circuit/relay/0.2.0/") for protocol in PROTOCOLS)
