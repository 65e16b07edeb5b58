"""The link pool over the memory transport, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from paceline.net.links import Links, LinksConfig
from paceline.net.memory import MemoryNetwork
from paceline.net.transport import Channel
from paceline.wire import codec, limits
from paceline.wire.errors import (
    DeadlineExceeded,
    InternalError,
    Malformed,
    Overloaded,
    PacelineError,
    PeerUnavailable,
    Refused,
)
from paceline.wire.ids import PeerId
from paceline.wire.messages import BlockPiece, Frame, Hello, Message, NextToken, PeerAddress, StatusRequest

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


@dataclass
class Peer:
    """One process: its links, and what they told it."""

    links: Links
    address: PeerAddress
    got: list[tuple[PeerId, Message, bytes]] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    lost: list[tuple[float, PeerId, PacelineError]] = field(default_factory=list)

    def numbers(self) -> list[int]:
        return [message.request for _, message, _ in self.got if isinstance(message, StatusRequest)]


class Swarm:
    """Peers on one memory network, opened on demand."""

    def __init__(self, stack: AsyncExitStack, config: LinksConfig) -> None:
        self.network = MemoryNetwork(seed=1, latency_s=0.01)
        self._stack = stack
        self._config = config

    async def peer(self, name: PeerId, *, listens: bool = True, **changes: object) -> Peer:
        transport = self.network.transport(name, listens=listens)

        def on_message(peer: PeerId, message: Message, payload: memoryview) -> None:
            made.got.append((peer, message, bytes(payload)))
            made.ticks.append(steps.count)

        def on_lost(peer: PeerId, error: PacelineError) -> None:
            made.lost.append((trio.current_time(), peer, error))

        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        links = Links(transport, on_message, on_lost, replace(self._config, **changes))  # type: ignore[arg-type]
        made = Peer(links, transport.address)
        await self._stack.enter_async_context(links.run())
        return made


class Steps(trio.abc.Instrument):
    """Counts the scheduler's steps: two events with the same count had no checkpoint between them."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@asynccontextmanager
async def swarm(**changes: object) -> AsyncIterator[Swarm]:
    async with AsyncExitStack() as stack:
        yield Swarm(stack, replace(LinksConfig(seed=7), **changes))  # type: ignore[arg-type]


async def test_messages_arrive_in_order_and_together(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        for number in range(100):
            a.links.send(b.address, StatusRequest(number))
        await trio.sleep(1)
        assert b.numbers() == list(range(100))
        assert len(set(b.ticks)) == 1, "delivered within one step of one task"
        assert {peer for peer, _, _ in b.got} == {A}


async def test_payload_is_copied_when_sent(autojump_clock: MockClock) -> None:
    frame = Frame(bytes(16), 3, bytes(4), 1, 0, 0, n=1, dtype="f32", hidden=2)
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        buffer = bytearray(b"12345678")
        a.links.send(b.address, frame, buffer)
        buffer[:] = bytes(8)
        await trio.sleep(1)
        assert b.got == [(A, frame, b"12345678")]


async def test_inbound_link_is_used_for_the_way_back(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a, b = await net.peer(A, listens=False), await net.peer(B)
        assert not b.links.reply(A, StatusRequest(0))
        a.links.send(b.address, StatusRequest(1))
        await trio.sleep(1)
        assert b.links.reply(A, StatusRequest(2))
        b.links.send(a.address, StatusRequest(3))
        await trio.sleep(1)
        assert a.numbers() == [2, 3]
        assert b.links.statistics().dials == 0
        assert a.links.peers() == (B,)
        assert b.links.peers() == (A,)


@pytest.mark.parametrize("delay_s", [0.0, 0.004, 0.01, 0.013, 0.02, 0.023, 0.03, 0.033, 0.036, 0.046, 0.056])
@pytest.mark.parametrize("back_s", [0.01, 0.013])
async def test_simultaneous_dials_end_in_one_link_and_lose_nothing(
    autojump_clock: MockClock, delay_s: float, back_s: float
) -> None:
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        net.network.set_latency(A, B, 0.01, back_s=back_s)
        for first, second in ((a, b), (b, a)) * 10:
            for peer in (a, b):
                peer.links.close(A)
                peer.links.close(B)
            await trio.sleep(20)
            for peer in (a, b):
                peer.got.clear()
                peer.lost.clear()
            first.links.send(second.address, StatusRequest(1))
            await trio.sleep(delay_s)
            second.links.send(first.address, StatusRequest(2))
            await trio.sleep(1)
            assert (second.numbers(), first.numbers()) == ([1], [2])
            assert not a.lost
            assert not b.lost
            assert a.links.statistics().up == b.links.statistics().up == 1


async def test_who_cannot_be_reached_is_linked_by_its_own_dial(autojump_clock: MockClock) -> None:
    """`a` knows addresses of `b` that do not work (NAT), and has the smaller id, while `b` dials `a`."""
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B, listens=False)
        b.links.send(a.address, StatusRequest(2))
        await trio.sleep(0.025)
        a.links.send(PeerAddress(B, control=("/memory/b",)), StatusRequest(1))
        await trio.sleep(2)
        assert (b.numbers(), a.numbers()) == ([1], [2])
        assert not a.lost


async def test_send_to_oneself_comes_next_tick_in_order_unencoded(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a = await net.peer(A)
        token = NextToken(bytes(16), 1, 0, 3, 4)
        a.links.send(a.address, token)
        a.links.send(a.address, StatusRequest(2), b"local")
        assert a.got == []
        await trio.testing.wait_all_tasks_blocked()
        assert a.got == [(A, token, b""), (A, StatusRequest(2), b"local")]
        assert a.got[0][1] is token
        assert a.links.statistics().bytes_out == 0
        assert a.links.rtt_s(A) is None


async def test_round_trip_is_measured(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        assert a.links.rtt_s(B) is None
        await a.links.connect(b.address, 1)
        net.network.spike(A, B, extra_s=0.1, for_s=1.2)
        await trio.sleep(3)
        assert a.links.rtt_min_s(B) == pytest.approx(0.02)
        assert 0.02 < (a.links.rtt_s(B) or 0) < 0.2
        assert b.links.rtt_s(A) is not None
        assert a.got == b.got == [], "heartbeats stay inside"


@pytest.mark.parametrize("fault", ["partition", "freeze"])
async def test_silence_is_noticed_within_the_bound(autojump_clock: MockClock, fault: str) -> None:
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        await a.links.connect(b.address, 1)
        await trio.sleep(10)
        at = trio.current_time()
        if fault == "partition":
            net.network.partition({A}, {B})
        else:
            net.network.freeze(B)
        await trio.sleep(5)
        for one, other in ((a, B), (b, A)):
            ((when, peer, error),) = one.lost
            assert peer == other
            assert isinstance(error, PeerUnavailable)
            assert "silent" in error.message
            assert 1.0 <= when - at <= 2.0, "1.5 s of silence, plus one tick and a ping's interval"
        net.network.heal()
        net.network.thaw(B)
        a.links.send(b.address, StatusRequest(9))
        await trio.sleep(2)
        assert b.numbers() == [9]


async def test_short_spike_is_not_silence(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        await a.links.connect(b.address, 1)
        await trio.sleep(2)
        net.network.spike(A, B, extra_s=0.6, for_s=2)
        await trio.sleep(10)
        assert not a.lost
        assert not b.lost


async def test_kill_is_noticed_at_once(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a, b, c = await net.peer(A), await net.peer(B), await net.peer(C)
        await a.links.connect(b.address, 1)
        await a.links.connect(c.address, 1)
        await trio.sleep(1)
        at = trio.current_time()
        net.network.kill(B)
        await trio.testing.wait_all_tasks_blocked()
        assert [(when, peer) for when, peer, _ in a.lost] == [(at, B)]
        assert a.links.peers() == (C,)
        a.links.send(b.address, StatusRequest(1))
        await trio.sleep(0.1)
        assert [peer for _, peer, _ in a.lost] == [B, B], "the new dial is refused"


async def test_restarted_peer_replaces_its_stale_link(autojump_clock: MockClock) -> None:
    """The old incarnation vanished behind a partition; the new one dials before the silence is noticed."""
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        await a.links.connect(b.address, 1)
        await trio.sleep(0.1)
        net.network.partition({A}, {B})
        b.links.close(A)
        await trio.sleep(0.3)
        net.network.heal()
        b.links.send(a.address, StatusRequest(5))
        await trio.sleep(1)
        assert a.numbers() == [5]
        assert len(a.lost) == 1
        assert a.links.peers() == (B,)


class Raw:
    """A peer that speaks the transport but not the protocol."""

    def __init__(self, network: MemoryNetwork, name: PeerId) -> None:
        self.transport = network.transport(name)

    async def channel(self, to: PeerAddress, *, protocol: int = 1) -> Channel:
        channel = await self.transport.dial(to, timeout_s=1)
        await channel.send([codec.encode(Hello(protocol, "raw"))])
        await channel.receive()
        return channel


@pytest.mark.parametrize("junk", [b"", b"\x00\x00\x00\x02\xff\xff", b"x" * 1000, codec.encode(Hello(1, "again"))])
async def test_malformed_peer_ends_its_own_link_only(autojump_clock: MockClock, junk: bytes) -> None:
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        await b.links.connect(a.address, 1)
        raw = await Raw(net.network, C).channel(a.address)
        await raw.send([codec.encode(StatusRequest(1)), junk, codec.encode(StatusRequest(2))])
        await trio.sleep(0.1)
        assert a.numbers() == [1]
        assert a.links.statistics().malformed == 1
        assert [peer for _, peer, _ in a.lost] == [C]
        b.links.send(a.address, StatusRequest(3))
        await trio.sleep(0.1)
        assert a.numbers() == [1, 3]


async def test_garbage_in_place_of_a_greeting_is_counted(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a = await net.peer(A)
        for junk in (b"GET / HTTP/1.1", codec.encode(StatusRequest(1))):
            raw = await Raw(net.network, C).transport.dial(a.address, timeout_s=1)
            await raw.send([junk])
            with pytest.raises(PeerUnavailable):
                await raw.receive()
        assert a.links.statistics().malformed == 2
        assert a.lost == []


async def test_silent_greeting_ends_by_its_deadline(autojump_clock: MockClock) -> None:
    async with swarm(hello_timeout_s=2.0) as net:
        a = await net.peer(A)
        raw = await Raw(net.network, C).transport.dial(a.address, timeout_s=1)
        at = trio.current_time()
        with pytest.raises(PeerUnavailable):
            await raw.receive()
        assert trio.current_time() - at < 2.1
        assert a.links.statistics().errors == {"deadline_exceeded": 1}


async def test_other_protocol_version_is_refused_on_both_sides(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a = await net.peer(A)
        raw = Raw(net.network, C)
        channel = await raw.channel(a.address, protocol=2)
        with pytest.raises(PeerUnavailable):
            await channel.receive()
        assert a.links.statistics().errors == {"refused": 1}

        async def older(inbound: Channel) -> None:
            await inbound.receive()
            await inbound.send([codec.encode(Hello(0, "older"))])
            await trio.sleep_forever()

        async with raw.transport.run(older):
            with pytest.raises(Refused, match="protocol 0"):
                await a.links.connect(raw.transport.address, 1)


async def test_outbox_is_bounded(autojump_clock: MockClock) -> None:
    async with swarm(outbox_bytes=10_000) as net:
        a, b = await net.peer(A), await net.peer(B)
        net.network.partition({A}, {B})
        a.links.send(b.address, BlockPiece(1, 1), bytes(9_000))
        with pytest.raises(Overloaded):
            a.links.send(b.address, BlockPiece(2, 1), bytes(9_000))
        await trio.sleep(10)
        assert [type(error) for _, _, error in a.lost] == [DeadlineExceeded]
        a.links.send(b.address, BlockPiece(3, 1), bytes(9_000))


async def test_message_over_the_limit_is_the_senders_error_and_the_link_stays(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        with pytest.raises(InternalError):
            a.links.send(b.address, BlockPiece(1, 1), bytes(limits.MAX_MESSAGE_BYTES))
        a.links.send(b.address, StatusRequest(1))
        await trio.sleep(1)
        assert b.numbers() == [1]


async def test_large_messages_do_not_hold_up_heartbeats(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        net.network.buffer_bytes = 1
        a, b = await net.peer(A), await net.peer(B)
        net.network.set_latency(A, B, 0.4)
        for number in range(40):
            a.links.send(b.address, BlockPiece(number, 1), bytes(700_000))
        await trio.sleep(60)
        assert [message.request for _, message, _ in b.got if isinstance(message, BlockPiece)] == list(range(40))
        assert not a.lost
        assert not b.lost


async def test_failed_dial_cools_down_then_is_tried_again(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a = await net.peer(A)
        nobody = PeerAddress(B, control=("/memory/b",))
        for _ in range(50):
            a.links.send(nobody, StatusRequest(1))
            await trio.sleep(0.1)
        stats = a.links.statistics()
        assert len(a.lost) > 40, "every message's fate is told"
        assert 3 <= stats.dials <= 8, "backoff between the attempts"
        with pytest.raises(PeerUnavailable):
            await a.links.connect(nobody, 1)
        b = await net.peer(B)
        await a.links.connect(b.address, 1)
        a.links.send(b.address, StatusRequest(2))
        await trio.sleep(0.1)
        assert b.numbers() == [2]


async def test_connect_keeps_its_deadline(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        a, b = await net.peer(A), await net.peer(B)
        net.network.freeze(B)
        at = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await a.links.connect(b.address, 0.7)
        assert trio.current_time() - at == pytest.approx(0.7)


async def test_idle_links_are_closed_and_come_back(autojump_clock: MockClock) -> None:
    async with swarm(idle_close_s=30.0) as net:
        a, b = await net.peer(A), await net.peer(B)
        await a.links.connect(b.address, 1)
        await trio.sleep(40)
        assert a.links.peers() == b.links.peers() == ()
        a.links.send(b.address, StatusRequest(1))
        await trio.sleep(1)
        assert b.numbers() == [1]


async def test_last_words_are_flushed(autojump_clock: MockClock) -> None:
    async with swarm() as net:
        b = await net.peer(B)
        async with AsyncExitStack() as stack:
            a = await Swarm.peer(_on(net, stack), A)
            a.links.send(b.address, StatusRequest(1))
            await a.links.flush(1)
        await trio.sleep(0.1)
        assert b.numbers() == [1]
        assert [peer for _, peer, _ in b.lost] == [A]
        assert a.lost == [], "nothing is lost by one's own leaving"


def _on(net: Swarm, stack: AsyncExitStack) -> Swarm:
    other = Swarm(stack, net._config)
    other.network = net.network
    return other


async def test_violation_raised_by_the_owner_ends_the_link(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    lost: list[PeerId] = []

    def strict(peer: PeerId, message: Message, payload: memoryview) -> None:
        raise Malformed("not now", peer=peer)

    a = Links(network.transport(A), strict, lambda peer, error: lost.append(peer))
    b = Links(network.transport(B), lambda *_: None)
    async with a.run(), b.run():
        b.send(a.address, StatusRequest(1))
        await trio.sleep(1)
        assert lost == [B]


async def test_owner_hears_of_links_that_come_up_and_may_want_or_refuse_one(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    up: list[tuple[str, PeerId]] = []

    def refuse(peer: PeerId) -> None:
        up.append(("b", peer))
        b.close(peer)

    a = Links(network.transport(A), lambda *_: None, on_up=lambda peer: up.append(("a", peer)))
    b = Links(network.transport(B), lambda *_: None, on_up=refuse)
    async with a.run(), b.run():
        a.want(b.address)
        a.want(b.address)
        a.want(a.address)
        await trio.sleep(1)
        assert up == [("a", B), ("b", A)]
        assert a.peers() == b.peers() == ()
        assert a.statistics().dials == 1
