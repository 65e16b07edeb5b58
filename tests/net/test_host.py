"""The real transport under strangers: garbage, slowness, oversize, impostors, dead addresses, and a clean end."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from paceline.net.dialing import parse_tcp
from paceline.net.direct import DirectChannel, Handshake
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.links import Links
from paceline.net.memory import MemoryNetwork
from paceline.net.transport import Channel
from paceline.wire import limits
from paceline.wire.errors import InvalidRequest, PeerUnavailable, ProtocolViolation
from paceline.wire.messages import PeerAddress


async def echo(channel: Channel) -> None:
    while True:
        await channel.send([bytes(message) for message in await channel.receive()])


async def ignore(channel: Channel) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def serving(config: NetConfig = NetConfig()) -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport]]:
    """A server that echoes, and a client of it."""
    server = Libp2pTransport(Identity.ephemeral(), config)
    client = Libp2pTransport(Identity.ephemeral(), NetConfig(listens=False))
    async with server.run(echo), client.run(ignore):
        with trio.fail_after(60):
            yield server, client


async def alive(server: Libp2pTransport, client: Libp2pTransport) -> None:
    """Both ports still serve."""
    for address in (
        PeerAddress(server.peer, data=server.address.data),
        PeerAddress(server.peer, control=server.address.control),
    ):
        channel = await client.dial(address, timeout_s=10)
        await channel.send([b"alive"])
        assert [bytes(message) for message in await channel.receive()] == [b"alive"]
        await channel.aclose()


async def connect(address: str) -> trio.SocketStream:
    return await trio.open_tcp_stream(*parse_tcp(address))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


GARBAGE = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 5000,
    b"\x00\x00\x00\x00",
    os.urandom(3000),
    b"\x13/multistream/1.0.0\n\xff",
)


async def test_garbage_on_both_ports_is_counted_and_both_serve_on() -> None:
    async with serving() as (server, client):
        for junk in GARBAGE:
            for address in (*server.address.control, *server.address.data):
                stream = await connect(address)
                await stream.send_all(junk)
                await stream.aclose()
        kinds = ("refused_data_handshake", "refused_data_lane")
        await until(lambda: sum(server.statistics().get(kind, 0) for kind in kinds) == len(GARBAGE))
        await until(lambda: server.statistics().get("refused_control_handshake", 0) == len(GARBAGE))
        await alive(server, client)


async def test_slow_and_too_many_strangers_are_turned_away() -> None:
    async with serving(NetConfig(handshake_deadline_s=0.5, max_handshakes=4)) as (server, client):
        strangers = [await connect(server.address.data[0]) for _ in range(10)]
        await until(lambda: server.statistics().get("refused_data_connections_over_limit", 0) == 6)
        await until(lambda: server.statistics().get("refused_data_handshake_late", 0) == 4)
        await alive(server, client)
        for stranger in strangers:
            assert await stranger.receive_some(1) == b""
            await stranger.aclose()


async def direct(server: Libp2pTransport) -> DirectChannel:
    stream = await connect(server.address.data[0])
    return await Handshake(Identity.ephemeral()).outbound(stream, server.peer, 5)


async def _huge_length(channel: DirectChannel) -> None:
    await channel._stream.send_all(channel._out.seal(memoryview(struct.pack(">I", limits.MAX_MESSAGE_BYTES + 1))))


async def _false_record(channel: DirectChannel) -> None:
    await channel._stream.send_all(struct.pack(">H", 100) + bytes(100))


async def _short_record(channel: DirectChannel) -> None:
    await channel._stream.send_all(struct.pack(">H", 3) + bytes(3))


async def _replayed_record(channel: DirectChannel) -> None:
    record = channel._out.seal(memoryview(struct.pack(">I", 1) + b"x"))
    await channel._stream.send_all(record + record)


@pytest.mark.parametrize("attack", [_huge_length, _false_record, _short_record, _replayed_record])
async def test_violations_after_the_handshake_end_one_channel(
    attack: Callable[[DirectChannel], Awaitable[None]],
) -> None:
    async with serving() as (server, client):
        channel = await direct(server)
        await attack(channel)
        await until(lambda: server.statistics().get("refused_channel_protocol_violation", 0) == 1)
        await alive(server, client)


async def test_oversize_on_the_stream_fallback_ends_one_channel() -> None:
    async with serving(NetConfig(data=False)) as (server, client):
        stream = await client.open_stream(server.address, "/paceline/link/1", timeout_s=5)
        await stream.write(struct.pack(">I", limits.MAX_MESSAGE_BYTES + 1))
        await until(lambda: server.statistics().get("refused_channel_protocol_violation", 0) == 1)
        channel = await client.dial(server.address, timeout_s=5)
        await channel.send([b"alive"])
        assert [bytes(message) for message in await channel.receive()] == [b"alive"]


async def test_somebody_else_behind_the_address_is_not_the_peer() -> None:
    async with serving() as (server, client):
        other = Identity.ephemeral().peer
        with pytest.raises(PeerUnavailable):
            await client.dial(PeerAddress(other, server.address.control, server.address.data), timeout_s=10)
        stream = await connect(server.address.data[0])
        with pytest.raises(ProtocolViolation):
            await Handshake(Identity.ephemeral()).outbound(stream, other, 5)
        await alive(server, client)


async def test_dead_addresses_are_passed_over_and_named() -> None:
    async with serving() as (server, client):
        dead = ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2")
        both = PeerAddress(server.peer, dead + server.address.control, dead + server.address.data)
        assert (await client.dial(both, timeout_s=10)).kind == "direct"
        no_data = PeerAddress(server.peer, dead + server.address.control, dead)
        assert (await client.dial(no_data, timeout_s=10)).kind == "stream"
        with pytest.raises(PeerUnavailable, match=r"tcp/1.*tcp/2"):
            await client.dial(PeerAddress(server.peer, data=dead), timeout_s=10)
        for strange in ("", "/", "/ip4/1.2.3.4", "/ip4/::1/tcp/x", "/unix/etc", "/ip4/127.0.0.1/udp/1/quic"):
            with pytest.raises(PeerUnavailable):
                await client.dial(PeerAddress(Identity.ephemeral().peer, (strange,), (strange,)), timeout_s=10)


async def test_a_peer_that_came_back_is_dialled_at_once() -> None:
    identity = Identity.ephemeral()
    client = Libp2pTransport(Identity.ephemeral(), NetConfig(listens=False))
    async with client.run(ignore):
        first = Libp2pTransport(identity, NetConfig(data=False))
        async with first.run(echo):
            address = first.address
            await client.dial(address, timeout_s=10)
        with pytest.raises(PeerUnavailable):
            await client.dial(address, timeout_s=5)
        port = parse_tcp(address.control[0])[1]
        async with Libp2pTransport(identity, NetConfig(control_port=port, data=False)).run(echo):
            channel = await client.dial(address, timeout_s=5)
            await channel.send([b"again"])
            assert [bytes(message) for message in await channel.receive()] == [b"again"]


def open_sockets() -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(entry).startswith("socket:")
        except OSError:
            continue
    return count


async def test_no_socket_stays_open() -> None:
    async with serving() as (server, client):
        await alive(server, client)
    before = open_sockets()
    for _ in range(2):
        async with serving() as (server, client):
            await alive(server, client)
            address = server.address
        for gone in (*address.control, *address.data):
            with pytest.raises(OSError):
                await connect(gone)
    assert open_sockets() <= before


async def test_a_taken_port_is_a_clear_error() -> None:
    async with serving() as (server, _):
        control, data = (parse_tcp(text[0])[1] for text in (server.address.control, server.address.data))
        for config, kind in ((NetConfig(control_port=control), "control"), (NetConfig(data_port=data), "data")):
            with pytest.raises(InvalidRequest, match=f"another {kind} port"):
                async with Libp2pTransport(Identity.ephemeral(), config).run(ignore):
                    pass


async def test_errors_leave_the_block_unwrapped() -> None:
    for transport in (Libp2pTransport(Identity.ephemeral()), MemoryNetwork().transport("a")):
        with pytest.raises(PeerUnavailable, match="from inside"):
            async with Links(transport, lambda *_: None).run():
                raise PeerUnavailable("from inside")


async def test_half_open_control_connections_do_not_stop_service() -> None:
    async with serving() as (server, client):
        strangers = [await connect(server.address.control[0]) for _ in range(50)]
        for stranger in strangers[::2]:
            await stranger.send_all(b"\x13/multistream")
        await alive(server, client)
        for stranger in strangers:
            await stranger.aclose()


async def test_addresses_told_to_others_are_real_ones() -> None:
    wild = Libp2pTransport(Identity.ephemeral(), NetConfig(listen_host="0.0.0.0"))
    async with wild.run(echo):
        address = wild.address
        assert address.control
        assert not any("0.0.0.0" in text for text in (*address.control, *address.data))
    told = Libp2pTransport(Identity.ephemeral(), NetConfig(announce=("203.0.113.7", "node.example")))
    async with told.run(echo):
        ports = [parse_tcp(text)[1] for text in (told.address.control[0], told.address.data[0])]
        assert told.address.control == (f"/ip4/203.0.113.7/tcp/{ports[0]}", f"/dns/node.example/tcp/{ports[0]}")
        assert told.address.data[1] == f"/dns/node.example/tcp/{ports[1]}"
