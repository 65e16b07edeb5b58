"""What every transport promises: in memory, over the direct data channel, over the stream fallback, and conditioned."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from paceline.net.conditioner import ConditionedTransport
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.links import Links
from paceline.net.memory import MemoryNetwork
from paceline.net.profiles import ANY, LinkProfile, LinkRow
from paceline.net.transport import Channel, Transport
from paceline.wire import limits
from paceline.wire.errors import DeadlineExceeded, PeerUnavailable
from paceline.wire.messages import BlockPiece, PeerAddress, StatusRequest

CONDITIONED = "conditioned "
KINDS = ("memory", "direct", "stream", CONDITIONED + "memory", CONDITIONED + "direct", CONDITIONED + "stream")
WEATHER = LinkProfile((LinkRow(ANY, ANY, {"latency_s": 0.002, "jitter_s": 0.002, "bandwidth_bytes_s": 1e8}),))

Make = Callable[..., Transport]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str) -> Make:
    network = MemoryNetwork()

    def plain(listens: bool) -> Transport:
        identity = Identity.ephemeral()
        if kind.endswith("memory"):
            return network.transport(identity.peer, listens=listens)
        return Libp2pTransport(identity, NetConfig(listens=listens, data=kind.endswith("direct")))

    def build(*, listens: bool = True) -> Transport:
        transport = plain(listens)
        return ConditionedTransport(transport, WEATHER) if kind.startswith(CONDITIONED) else transport

    return build


async def echo(channel: Channel) -> None:
    while True:
        await channel.send([bytes(message) for message in await channel.receive()])


async def ignore(channel: Channel) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def running(*transports: tuple[Transport, Callable[[Channel], Awaitable[None]]]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for transport, handler in transports:
            await stack.enter_async_context(transport.run(handler))
        with trio.fail_after(60):
            yield


async def gather(channel: Channel, count: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < count:
        got += [bytes(message) for message in await channel.receive()]
    return got


async def test_whole_messages_in_order_both_ways(make: Make, kind: str) -> None:
    server, client = make(), make(listens=False)
    sent = [os.urandom(size) for size in (0, 1, 3, 4, 5, 8192, 65_515, 65_519, 65_520, 300_000, 2_000_000)]
    async with running((server, echo), (client, ignore)):
        channel = await client.dial(server.address, timeout_s=10)
        assert (channel.peer, channel.kind, channel.dialer) == (
            server.address.peer,
            kind.removeprefix(CONDITIONED),
            True,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.send, sent[:5])
            got = await gather(channel, 5)
            nursery.start_soon(channel.send, sent[5:])
            got += await gather(channel, len(sent) - 5)
        assert got == sent
        assert channel.bytes_heard >= sum(map(len, sent))
        await channel.aclose()


async def test_acceptor_knows_who_dialled_and_a_client_has_no_address(make: Make) -> None:
    server, client = make(), make(listens=False)
    seen: list[tuple[str, bool]] = []

    async def note(channel: Channel) -> None:
        seen.append((channel.peer, channel.dialer))
        await channel.send([b"hello"])

    async with running((server, note), (client, ignore)):
        assert server.address.control
        assert client.address == PeerAddress(client.address.peer)
        channel = await client.dial(server.address, timeout_s=10)
        assert await gather(channel, 1) == [b"hello"]
        assert seen == [(client.address.peer, False)]
        with pytest.raises(PeerUnavailable):
            await channel.receive()
    assert server.address.control == () or isinstance(server.address.control[0], str)


async def test_the_largest_message_passes_and_a_larger_one_is_our_own_bug(make: Make) -> None:
    server, client = make(), make(listens=False)
    async with running((server, echo), (client, ignore)):
        channel = await client.dial(server.address, timeout_s=10)
        with pytest.raises(ValueError, match="over the limit"):
            await channel.send([bytes(limits.MAX_MESSAGE_BYTES + 1)])
        channel = await client.dial(server.address, timeout_s=10)
        largest = bytes(limits.MAX_MESSAGE_BYTES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.send, [largest])
            (got,) = await gather(channel, 1)
        assert got == largest


async def test_closing_wakes_both_tasks_and_is_idempotent(make: Make) -> None:
    server, client = make(), make(listens=False)
    woken: list[str] = []

    async def reader(channel: Channel) -> None:
        with pytest.raises(PeerUnavailable):
            await channel.receive()
        woken.append("reader")

    async def writer(channel: Channel) -> None:
        while True:
            try:
                await channel.send([bytes(1_000_000)])
            except PeerUnavailable:
                woken.append("writer")
                return

    async with running((server, ignore), (client, ignore)):
        channel = await client.dial(server.address, timeout_s=10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader, channel)
            nursery.start_soon(writer, channel)
            await trio.sleep(0.3)
            await channel.aclose()
            await channel.aclose()
        assert sorted(woken) == ["reader", "writer"]
        for call in (channel.receive(), channel.send([b"late"])):
            with pytest.raises(PeerUnavailable):
                await call


async def test_cancelled_receive_loses_nothing(make: Make) -> None:
    server, client = make(), make(listens=False)
    async with running((server, echo), (client, ignore)):
        channel = await client.dial(server.address, timeout_s=10)
        got: list[bytes] = []
        for number in range(20):
            await channel.send([number.to_bytes(2, "big")])
            with trio.move_on_after(0.0005 * (number % 4)):
                got += [bytes(message) for message in await channel.receive()]
        got += await gather(channel, 20 - len(got))
        assert got == [number.to_bytes(2, "big") for number in range(20)]


async def test_peer_that_leaves_is_noticed(make: Make) -> None:
    server, client = make(), make(listens=False)
    async with running((client, ignore)):
        async with running((server, echo)):
            address = server.address
            channel = await client.dial(address, timeout_s=10)
            await channel.send([b"x"])
            assert await gather(channel, 1) == [b"x"]
        with pytest.raises(PeerUnavailable):
            await channel.receive()
        with pytest.raises(PeerUnavailable):
            await client.dial(address, timeout_s=3)


async def test_dial_without_an_address_or_without_time(make: Make) -> None:
    server, client = make(), make(listens=False)
    async with running((server, echo), (client, ignore)):
        with pytest.raises(PeerUnavailable):
            await client.dial(PeerAddress(server.address.peer), timeout_s=1)
        with pytest.raises(DeadlineExceeded):
            await client.dial(server.address, timeout_s=0.0001)


async def test_links_work_on_it(make: Make, kind: str) -> None:
    got: list[int] = []
    back: list[bytes] = []
    node = Links(make(), lambda peer, message, payload: answer(peer, message))  # type: ignore[arg-type]
    client = Links(make(listens=False), lambda peer, message, payload: back.append(bytes(payload)))

    def answer(peer: str, message: StatusRequest) -> None:
        got.append(message.request)
        node.reply(peer, BlockPiece(message.request, 1), message.request.to_bytes(4, "big"))  # type: ignore[arg-type]

    async with node.run(), client.run():
        for number in range(200):
            client.send(node.address, StatusRequest(number))
        with trio.fail_after(20):
            while len(back) < 200:
                await trio.sleep(0.01)
        assert got == list(range(200))
        assert back == [number.to_bytes(4, "big") for number in range(200)]
        (peer,) = client.peers()
        assert client.rtt_s(peer) is not None
