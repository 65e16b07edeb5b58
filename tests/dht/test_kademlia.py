"""The directory on real sockets: any member is a way in, the dead vanish, garbage is counted, Kademlia backs it up.

Few tests, short lifetimes. What does not need sockets is in test_membership.py, in virtual time.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import varint
from dht_hosts import loopback, way_in
from dht_making import REVISION, offer, person, with_body
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from paceline.dht import exchange, offers, records, stretches
from paceline.dht.exchange import Ask
from paceline.dht.kademlia import DirectoryConfig, KademliaDirectory, parse_bootstrap
from paceline.dht.membership import MembershipConfig
from paceline.dht.view import CAPACITY
from paceline.net.hardening import DHT_PROTOCOL
from paceline.net.host import Libp2pTransport
from paceline.net.identity import Identity
from paceline.net.streams import HostStream
from paceline.wire.errors import InvalidRequest, PeerUnavailable
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Offer

LIFETIME_S = 2.0


class Node:
    """One announcing member with its transport."""

    def __init__(self, who: Identity, transport: Libp2pTransport, directory: KademliaDirectory) -> None:
        self.who = who
        self.transport = transport
        self.directory = directory
        self.scope = trio.CancelScope()

    def fresh(self, lifetime: float = LIFETIME_S) -> Offer:
        mine = msgspec.structs.replace(offer(self.who), at=self.transport.address)
        return offers.stamp(mine, time.time(), lifetime)


def config(
    bootstrap: tuple[str, ...], round_s: float = 0.4, *, crowd: int = stretches.CROWD, capacity: int = CAPACITY
) -> DirectoryConfig:
    membership = MembershipConfig(round_s=round_s, join_timeout_s=5.0, capacity=capacity)
    return DirectoryConfig(bootstrap, tidy_s=0.3, crowd=crowd, membership=membership)


@asynccontextmanager
async def nodes(count: int, *, crowd: int = stretches.CROWD, lifetime: float = LIFETIME_S) -> AsyncIterator[list[Node]]:
    """A line of members, each told only of the one before it. `node.scope.cancel()` kills one without a word."""
    made: list[Node] = []
    async with trio.open_nursery() as nursery:

        async def live(n: int, started: trio.Event) -> None:
            async with loopback(person(n + 1)) as transport:
                bootstrap = way_in(made[-1].transport) if made else ()
                directory = KademliaDirectory(transport, person(n + 1), config(bootstrap, crowd=crowd))
                node = Node(person(n + 1), transport, directory)
                with node.scope:
                    async with node.directory.run():
                        made.append(node)
                        while True:
                            await node.directory.announce(node.fresh(lifetime))
                            started.set()
                            await trio.sleep(lifetime / 3)

        for n in range(count):
            started = trio.Event()
            nursery.start_soon(live, n, started)
            await started.wait()
        yield made
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(15):
        while not condition():
            await trio.sleep(0.05)


async def sees(directory: KademliaDirectory, wanted: set[str]) -> None:
    with trio.fail_after(15):
        while {it.peer for it in await directory.offers()} != wanted:
            await trio.sleep(0.05)


async def test_any_member_is_a_way_in_and_the_killed_vanish() -> None:
    async with nodes(4) as made:
        everybody = {it.who.peer for it in made}
        for node in made:
            await sees(node.directory, everybody)
        for n, node in enumerate(made):
            async with loopback(person(50 + n), listens=False) as transport:
                client = KademliaDirectory(transport, person(50 + n), config(way_in(node.transport)))
                async with client.run():
                    assert {it.peer for it in await client.offers("toy")} == everybody
        made[0].scope.cancel()
        made[2].scope.cancel()
        left = {made[1].who.peer, made[3].who.peer}
        for node in (made[1], made[3]):
            await sees(node.directory, left)
            directory = node.directory
            await until(lambda directory=directory: directory.statistics()["kad_table"] == 1)  # type: ignore[misc]


async def test_a_model_that_the_view_does_not_know_is_found_by_kademlia() -> None:
    async with nodes(3) as made, loopback(person(60), listens=False) as transport:
        client = KademliaDirectory(transport, person(60), config(way_in(made[0].transport), round_s=1000.0))
        async with client.run():
            await until(lambda: all(it.directory.statistics().get("kad_published", 0) >= 1 for it in made))
            with trio.fail_after(10):
                while await client.offers():
                    await trio.sleep(0.1)  # without its rounds, the client's view dries up
            found = await client.offers("toy")
            assert found
            assert {it.peer for it in found} <= {it.who.peer for it in made}
            assert client.statistics()["kad_searches"] == 1
            alone = await client.find(made[2].who.peer)
            assert alone is not None
            assert alone.peer == made[2].who.peer


async def test_a_full_view_finds_layers_by_their_stretches() -> None:
    """The client's view has room for one; Kademlia names the others, and they are asked for the wanted layers only."""
    async with nodes(3, crowd=0, lifetime=60.0) as made, loopback(person(60), listens=False) as transport:
        everybody = {it.who.peer for it in made}
        for node in made:
            await sees(node.directory, everybody)
        way = way_in(made[0].transport)
        client = KademliaDirectory(transport, person(60), config(way, round_s=1000.0, capacity=1))
        async with client.run():
            await until(lambda: all(it.directory.statistics().get("kad_published", 0) >= 1 for it in made))
            assert len(await client.offers("toy")) == 1
            assert await client.cover(REVISION, 30, range(16, 24)) == 0, "nobody holds those"
            assert await client.cover(REVISION, 30, range(4)) == 2
            assert {it.peer for it in await client.offers("toy")} == everybody
            assert client.statistics()["peers_beside_view"] == client.statistics()["kad_searches"] == 2


async def test_a_client_is_in_nobodys_routing_table() -> None:
    async with nodes(2) as made, loopback(person(60), listens=False) as transport:
        client = KademliaDirectory(transport, person(60), config(way_in(made[0].transport)))
        async with client.run():
            await client.offers("nobody serves this")
            assert client.statistics()["kad_searches"] == 1
            for node in made:
                await until(lambda node=node: node.directory.statistics()["kad_table"] == 1)  # type: ignore[misc]


async def test_who_is_reached_through_a_relay_only_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(2) as made:
        first, second = made
        await until(lambda: first.directory.statistics()["kad_table"] == 1)
        direct = second.transport.address
        circuit = PeerAddress(direct.peer, (f"{direct.control[0]}/p2p/{person(9).peer}/p2p-circuit",))
        monkeypatch.setattr(second.transport._doors, "address", circuit)
        await until(lambda: first.directory.statistics()["kad_table"] == 0)
        assert first.directory.everybody() == []
        assert {it.peer for it in await first.directory.offers()} == {first.who.peer, second.who.peer}
        with pytest.raises(PeerUnavailable):
            await first.transport.open_stream(direct, DHT_PROTOCOL, timeout_s=5)
        monkeypatch.setattr(second.transport._doors, "address", direct)
        await until(lambda: first.directory.statistics()["kad_table"] == 1)
        stream = await first.transport.open_stream(direct, DHT_PROTOCOL, timeout_s=5)
        await quietly_reset(stream)


async def test_garbage_on_both_protocols_is_counted_and_the_node_keeps_serving() -> None:
    async with nodes(1) as made, loopback(person(60), listens=False) as attacker:
        (node,) = made
        at = node.transport.address
        good = offers.sign(person(61), offers.stamp(offer(person(61)), time.time(), 10))
        bad = (
            msgspec.structs.replace(good, signature=bytes(64)),
            offers.sign(person(62), offers.stamp(offer(person(62)), time.time() - 100, 10)),
            offers.sign(person(63), offers.stamp(offer(person(63)), time.time(), 500)),
            with_body(good, b"junk"),
        )
        with pytest.raises(PeerUnavailable):
            await tell(attacker, at, exchange.encode(Ask(bad)))
        for garbage in (b"", b"\xc1" * 50, exchange.encode(Ask(digest=b"x"))):
            with pytest.raises(PeerUnavailable):
                await tell(attacker, at, garbage)
        with pytest.raises(PeerUnavailable):
            await tell(attacker, at, b"", size=0xFFFFFFFF)

        now = time.time()
        contact = PeerAddress(person(64).peer, ("/ip4/127.0.0.1/tcp/1",))
        key = records.contact_key(contact.peer)
        value = records.sign_contact(person(64), contact, now, 100)
        await put(attacker, at, key, value)
        for wrong_key, wrong in (
            (key, records.sign_contact(person(65), contact, now, 100)),
            (key, records.sign_contact(person(64), contact, now - 200, 100)),
            (records.contact_key(person(65).peer), value),
            (key, bytes(20_000)),
            (key, b"garbage"),
            ("/pk/" + contact.peer, value),
            ("plain", value),
        ):
            with pytest.raises(PeerUnavailable):
                await put(attacker, at, wrong_key, wrong)

        counts = node.directory.statistics()
        for reason in ("forged", "expired", "too_long_lived", "malformed"):
            assert counts[f"offers_rejected_{reason}"] == 1
        for reason in ("forged", "expired", "wrong_peer", "oversized", "malformed"):
            assert counts[f"kad_rejected_{reason}"] == 1
        assert counts["exchange_streams_broken"] == 5
        assert {it.peer for it in await node.directory.offers()} == {node.who.peer}
        await tell(attacker, at, exchange.encode(Ask((good,))))
        assert {it.peer for it in await node.directory.offers()} == {node.who.peer, person(61).peer}


async def tell(attacker: Libp2pTransport, to: PeerAddress, request: bytes, size: int | None = None) -> bytes:
    """One raw request on a stream of its own."""
    stream = await attacker.open_stream(to, exchange.PROTOCOL, timeout_s=5)
    try:
        await stream.write(struct.pack(">I", len(request) if size is None else size) + request)
        with trio.fail_after(5):
            return await stream.read(1 << 16)
    finally:
        await quietly_reset(stream)


async def put(attacker: Libp2pTransport, to: PeerAddress, key: str, value: bytes) -> None:
    """One raw PUT_VALUE; raises PeerUnavailable where the node resets the stream instead of confirming."""
    message = Message()
    message.type = Message.MessageType.PUT_VALUE
    message.key = message.record.key = key.encode()
    message.record.value = value
    body = message.SerializeToString()
    stream = await attacker.open_stream(to, DHT_PROTOCOL, timeout_s=5)
    try:
        await stream.write(varint.encode(len(body)) + body)
        with trio.fail_after(5):
            await stream.read(1 << 16)
    finally:
        await quietly_reset(stream)


async def quietly_reset(stream: HostStream) -> None:
    try:
        await stream.reset()
    except PeerUnavailable:
        return


def test_bootstrap_addresses_are_grouped_by_peer() -> None:
    one, other = person(1).peer, person(2).peer
    relayed = f"/ip4/192.0.2.1/tcp/1/p2p/{other}/p2p-circuit"
    assert parse_bootstrap(
        (f"/ip4/192.0.2.1/tcp/1/p2p/{one}", f"{relayed}/p2p/{one}", f"/dns/a/tcp/2/p2p/{other}")
    ) == (
        PeerAddress(one, ("/ip4/192.0.2.1/tcp/1", relayed)),
        PeerAddress(other, ("/dns/a/tcp/2",)),
    )
    for text in ("", "/ip4/192.0.2.1/tcp/1", f"192.0.2.1/p2p/{one}", "/ip4/192.0.2.1/tcp/1/p2p/", f"/p2p/{one}"):
        with pytest.raises(InvalidRequest, match="not a member's address"):
            parse_bootstrap((text,))


def test_a_members_ready_file_stands_for_its_addresses(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    address = f"/dns/meeting/tcp/4001/p2p/{person(1).peer}"
    file.write_text(json.dumps({"bootstrap": [address]}))
    assert parse_bootstrap((f"@{file}",)) == parse_bootstrap((address,))
    for text in ("", "[]", '{"bootstrap": 3}', '{"bootstrap": ["no address"]}'):
        file.write_text(text)
        with pytest.raises(InvalidRequest):
            parse_bootstrap((f"@{file}",))
    with pytest.raises(InvalidRequest, match="ready file"):
        parse_bootstrap((f"@{tmp_path / 'absent'}",))


async def test_leaving_the_block_ends_the_service() -> None:
    async with loopback(person(1)) as server, loopback(person(2), listens=False) as asker:
        directory = KademliaDirectory(server, person(1))
        async with directory.run():
            await tell(asker, server.address, exchange.encode(Ask()))
        with pytest.raises(PeerUnavailable):
            await tell(asker, server.address, exchange.encode(Ask()))
