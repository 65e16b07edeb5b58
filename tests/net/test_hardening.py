"""Each fix of the library, by what goes wrong without it. Real hosts on loopback."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.io.utils import read_exactly
from libp2p.network import swarm
from libp2p.network.stream.exceptions import StreamReset
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux
from multiaddr import Multiaddr

from paceline.net import hardening, patched_yamux
from paceline.net.host import Libp2pTransport
from paceline.net.identity import Identity

PROTOCOL = "/test/1"


@dataclass
class Pair:
    """Two connected hosts; streams that the server accepts arrive in `accepted`."""

    client: Any
    server: Any
    refused: Counter[str]
    accept: trio.MemoryReceiveChannel[Any] = field(repr=False)

    async def stream(self) -> tuple[Any, Any]:
        """A stream's two ends, as the muxer has them."""
        near = await self.client.new_stream(self.server.get_id(), [PROTOCOL])
        await near.write(b"?")
        far = await self.accept.receive()
        assert await far.read(1) == b"?"
        return near, far

    def connection(self) -> Any:
        """The client's yamux connection."""
        (connection,) = self.client.get_network().get_connections()
        return connection.muxed_conn


def _host() -> tuple[Any, Counter[str]]:
    transport = Libp2pTransport(Identity.ephemeral())
    return transport.host, transport._counts


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    server, refused = _host()
    client, _ = _host()
    arrived, accept = trio.open_memory_channel[Any](100)

    async def handler(stream: Any) -> None:
        await arrived.send(stream)
        await trio.sleep_forever()

    with trio.fail_after(30):
        async with (
            server.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]),
            client.run(listen_addrs=[]),
        ):
            server.set_stream_handler(PROTOCOL, handler)
            await client.get_network().dial_addr(server.get_transport_addrs()[0], server.get_id())
            try:
                yield Pair(client, server, refused, accept)
            finally:
                await hardening.close(client)
                await hardening.close(server)


def test_hardening_twice_is_hardening_once() -> None:
    hardening.harden()
    write, init = yamux.YamuxStream.write, yamux.Yamux.__init__
    hardening.harden()
    assert (yamux.YamuxStream.write, yamux.Yamux.__init__) == (write, init)


def test_constants_that_the_library_gets_wrong() -> None:
    from libp2p.kad_dht import kad_dht, peer_routing, provider_store, value_store

    assert swarm._HAPPY_EYEBALLS_DELAY < 0.1
    for module in (kad_dht, peer_routing, provider_store, value_store):
        assert module.PROTOCOL_ID == hardening.DHT_PROTOCOL
    for module in (kad_dht, peer_routing, provider_store):
        assert module.QUERY_TIMEOUT <= 3.0


async def test_hosts_dial_only_when_asked() -> None:
    async with pair() as it:
        stranger, _ = _host()
        async with stranger.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            network = it.client.get_network()
            network.peerstore.add_addrs(stranger.get_id(), stranger.get_transport_addrs(), 3600)

            async def candidates() -> list[ID]:
                return [stranger.get_id()]

            network.auto_connector._get_candidate_peers = candidates
            await network.auto_connector.maybe_connect()
            assert not network.get_connections(stranger.get_id())
            await hardening.close(stranger)


async def test_a_message_may_come_in_many_pieces() -> None:
    class Dribble:
        async def read(self, n: int) -> bytes:
            return b"x"

    assert await read_exactly(Dribble(), 1000) == b"x" * 1000


async def test_one_system_call_serves_many_reads() -> None:
    calls: list[int] = []

    class Socket:
        async def receive_some(self, n: int) -> bytes:
            calls.append(n)
            return b"0123456789" if len(calls) == 1 else b""

    stream = TrioTCPStream(Socket())
    assert [await stream.read(2), await stream.read(3), await stream.read(100), await stream.read(1)] == [
        b"01",
        b"234",
        b"56789",
        b"",
    ]
    assert len(calls) == 2


async def test_window_updates_are_few() -> None:
    async with pair() as it:
        near, far = await it.stream()
        frames = 0
        write_frame = far.muxed_stream.conn._write_frame

        async def counted(data: bytes) -> None:
            nonlocal frames
            _, kind, flags, stream, _ = struct.unpack("!BBHII", data[:12])
            frames += (kind, flags, stream) == (yamux.TYPE_WINDOW_UPDATE, 0, far.muxed_stream.stream_id)
            await write_frame(data)

        far.muxed_stream.conn._write_frame = counted
        for _ in range(50):
            await near.write(bytes(1000))
            left = 1000
            while left:
                left -= len(await far.read(left))
        assert frames == 0, "50 KB need no credit back"


async def test_peer_past_its_window_is_cut_off_and_memory_stays() -> None:
    async with pair() as it:
        near, far = await it.stream()
        muxed = far.muxed_stream.conn
        for _ in range(50):
            near.muxed_stream.send_window = 1 << 30
            with suppress(Exception):
                await near.write(bytes(1 << 20))
            held = sum(map(len, muxed.stream_buffers.values()))
            assert held <= 2 * patched_yamux.WINDOW_BYTES
        assert muxed.event_shutting_down.is_set()


async def test_writer_without_credit_resets_and_tells_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patched_yamux, "STALL_S", 0.05)
    async with pair() as it:
        near, far = await it.stream()
        near.muxed_stream.send_window = 10
        with pytest.raises(MuxedStreamReset, match="credit"):
            await near.muxed_stream.write(bytes(1000))
        assert await far.muxed_stream.read(100) == bytes(10)
        with pytest.raises(MuxedStreamReset):
            await far.muxed_stream.read(100)


async def test_cancelled_write_never_cuts_a_frame() -> None:
    async with pair() as it:
        near, far = await it.stream()
        secured = it.connection().secured_conn
        write, halves = secured.write, []

        async def slow(data: bytes) -> None:
            halves.append("first")
            await trio.sleep(0.05)
            await write(data)
            halves.append("second")

        secured.write = slow
        with trio.move_on_after(0.01):
            await near.write(b"whole")
        secured.write = write
        assert halves == ["first", "second"]
        assert await far.read(100) == b"whole"
        other, far_other = await it.stream()
        await other.write(b"still fine")
        assert await far_other.read(100) == b"still fine"


async def test_reset_is_not_taken_for_an_end_and_loses_nothing_before_it() -> None:
    async with pair() as it:
        near, far = await it.stream()
        await near.write(b"last words")
        await near.reset()
        await trio.sleep(0.05)
        assert await far.muxed_stream.read(100) == b"last words"
        near, far = await it.stream()
        await near.reset()
        with pytest.raises(MuxedStreamReset):
            await far.muxed_stream.read(100)


@pytest.mark.parametrize("name", [b"\xff\xfe\xfd\n", b"no newline", b"/unknown/1\n"])
async def test_strange_protocol_name_ends_its_stream_only(name: bytes) -> None:
    async with pair() as it:
        muxed = await it.connection().open_stream()
        header = b"/multistream/1.0.0\n"
        await muxed.write(bytes([len(header)]) + header + bytes([len(name)]) + name)
        await trio.sleep(0.1)
        near, far = await it.stream()
        await near.write(b"alive")
        assert await far.read(100) == b"alive"
        if name.startswith(b"\xff"):
            assert it.refused == {"stream_unicode_decode_error": 1}


async def test_handler_that_raises_ends_its_stream_only() -> None:
    async with pair() as it:

        async def broken(stream: Any) -> None:
            raise ValueError("bug in a handler")

        it.server.set_stream_handler("/broken/1", broken)
        stream = await it.client.new_stream(it.server.get_id(), ["/broken/1"])
        with pytest.raises(StreamReset):
            await stream.read(1)
        near, far = await it.stream()
        await near.write(b"alive")
        assert await far.read(100) == b"alive"
        assert it.refused == {"stream_value_error": 1}


async def test_gossip_with_a_junk_key_is_dropped() -> None:
    host, _ = _host()
    refused: list[str] = []
    router = GossipSub(["/meshsub/1.1.0"], 6, 4, 12)
    gossip = hardening.SafePubsub(host, router, strict_signing=True, report=refused.append)
    author = ID(b"\x12\x20" + bytes(32))  # the hash of a key: only `key` could tell which
    junk = rpc_pb2.Message(
        data=b"x", topicIDs=["t"], from_id=author.to_bytes(), seqno=b"1", key=b"\xff\xff", signature=b"s" * 64
    )
    await gossip.push_msg(author, junk)
    assert refused == ["gossip_decode_error"]


@pytest.mark.parametrize("security", [b"/plaintext/2.0.0\n", b"/secio/1.0.0\n", b"/tls/1.0.0\n"])
async def test_only_noise_is_offered(security: bytes) -> None:
    async with pair() as it:
        port = int(it.server.get_transport_addrs()[0].value_for_protocol("tcp"))
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        header = b"/multistream/1.0.0\n"
        await stream.send_all(bytes([len(header)]) + header + bytes([len(security)]) + security)
        answer = b""
        while len(answer) < 1 + len(header) + 4:
            answer += await stream.receive_some(100)
        assert answer.endswith(b"\x03na\n")
        await stream.aclose()


async def test_close_leaves_no_port_open() -> None:
    async with pair() as it:
        port = int(it.server.get_transport_addrs()[0].value_for_protocol("tcp"))
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", port)


def test_everything_is_translated() -> None:
    from libp2p.network.exceptions import SwarmException
    from libp2p.security.noise.exceptions import InvalidSignature, PeerIDMismatchesPubkey

    from paceline.wire.errors import Malformed, PeerUnavailable, ProtocolViolation

    for error, kind in (
        (SwarmException("x"), PeerUnavailable),
        (trio.TooSlowError(), PeerUnavailable),
        (OSError("x"), PeerUnavailable),
        (KeyError("x"), PeerUnavailable),
        (InvalidSignature(), ProtocolViolation),
        (PeerIDMismatchesPubkey("x"), ProtocolViolation),
    ):
        translated = hardening.translated(error, "somebody")
        assert type(translated) is kind
        assert translated.peer == "somebody"
    ours = Malformed("x")
    assert hardening.translated(ours, "somebody") is ours
