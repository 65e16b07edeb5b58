"""The link conditioner, over the memory network under MockClock: what arrives when, and what a partition holds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from paceline.net.conditioner import BUFFER_BYTES, LINGER_S, POLL_S, ConditionedTransport, conditioned
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.links import Links
from paceline.net.memory import MemoryNetwork
from paceline.net.profiles import ANY, LinkProfile, LinkRow
from paceline.net.sky import HANDSHAKE_TRIPS
from paceline.net.transport import Channel
from paceline.wire.errors import DeadlineExceeded, InvalidRequest, PeerUnavailable
from paceline.wire.ids import PeerId
from paceline.wire.messages import StatusRequest

A, B = PeerId("alice"), PeerId("bob")
CALM = LinkProfile()
CUT = LinkProfile((LinkRow(A, B, {"partition": True}),))

Change = float | bool


def everywhere(**changes: Change) -> LinkProfile:
    return LinkProfile((LinkRow(ANY, ANY, changes),), seed=1)


async def ignore(channel: Channel) -> None:
    await trio.sleep_forever()


@dataclass
class Ends:
    """Both ends of one channel; A dialled, and only A's transport is conditioned."""

    network: MemoryNetwork
    alice: ConditionedTransport
    a: Channel
    b: Channel
    began: float = field(default_factory=trio.current_time)

    def elapsed(self) -> float:
        return trio.current_time() - self.began


@asynccontextmanager
async def pair(profile: LinkProfile = CALM, file: Path | None = None) -> AsyncIterator[Ends]:
    network = MemoryNetwork(latency_s=0.0)
    send, inbound = trio.open_memory_channel[Channel](1)

    async def accept(channel: Channel) -> None:
        await send.send(channel)
        await trio.sleep_forever()

    alice = ConditionedTransport(network.transport(A), profile, file=file, slack_s=0.0)
    bob = network.transport(B)
    async with bob.run(accept), alice.run(ignore):
        a = await alice.dial(bob.address, timeout_s=100)
        yield Ends(network, alice, a, await inbound.receive())


async def gather(channel: Channel, count: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < count:
        got += [bytes(message) for message in await channel.receive()]
    return got


# --- delay ------------------------------------------------------------------------------------------------------


async def test_a_message_arrives_one_latency_later_and_the_other_direction_is_the_other_sides_business(
    autojump_clock: MockClock,
) -> None:
    async with pair(everywhere(latency_s=0.025)) as ends:
        await ends.a.send([b"one", b"two"])
        assert ends.elapsed() == 0
        assert await ends.b.receive() == [b"one", b"two"]
        assert ends.elapsed() == pytest.approx(0.025)
        await ends.b.send([b"back"])
        assert await ends.a.receive() == [b"back"]
        assert ends.elapsed() == pytest.approx(0.025)


async def test_dialling_takes_the_handshakes_round_trips(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    async with pair(LinkProfile((LinkRow(A, B, {"latency_s": 0.01}), LinkRow(B, A, {"latency_s": 0.03})))) as ends:
        assert ends.began - began == pytest.approx(HANDSHAKE_TRIPS * 0.04)


async def test_jitter_keeps_the_order(autojump_clock: MockClock) -> None:
    async with pair(everywhere(latency_s=0.01, jitter_s=0.05)) as ends, trio.open_nursery() as nursery:
        arrivals: list[float] = []
        sent = [number.to_bytes(2, "big") for number in range(100)]

        async def read() -> None:
            got: list[bytes] = []
            while len(got) < len(sent):
                got += [bytes(message) for message in await ends.b.receive()]
                arrivals.append(ends.elapsed())
            assert got == sent

        nursery.start_soon(read)
        for message in sent:
            await ends.a.send([message])
            await trio.sleep(0.001)
    assert len(arrivals) > 2
    assert arrivals[0] >= 0.01
    assert arrivals[-1] <= 0.1 + 0.06


async def test_bandwidth_lets_messages_through_one_by_one(autojump_clock: MockClock) -> None:
    async with pair(everywhere(latency_s=0.5, bandwidth_bytes_s=1000.0)) as ends:
        await ends.a.send([bytes(1000), bytes(2000)])
        assert len((await ends.b.receive())[0]) == 1000
        assert ends.elapsed() == pytest.approx(1.5)
        assert ends.b.bytes_heard == 1000
        assert len((await ends.b.receive())[0]) == 2000
        assert ends.elapsed() == pytest.approx(3.5)


async def test_the_sender_waits_for_bandwidth_and_not_for_latency(autojump_clock: MockClock) -> None:
    async with pair(everywhere(latency_s=10.0, bandwidth_bytes_s=1_000_000.0)) as ends:
        for _ in range(5):
            await ends.a.send([bytes(1_000_000)])
        assert 3.9 <= ends.elapsed() <= 4.0


async def test_the_uplink_is_shared_by_all_channels(autojump_clock: MockClock) -> None:
    profile = LinkProfile(uplink_bytes_s=1000.0)
    async with pair(profile) as ends:
        third = ends.network.transport("carol")
        got: list[float] = []

        async def note(channel: Channel) -> None:
            await channel.receive()
            got.append(ends.elapsed())

        async with third.run(note):
            other = await ends.alice.dial(third.address, timeout_s=1)
            await ends.a.send([bytes(1000)])
            await other.send([bytes(1000)])
            await ends.b.receive()
            assert ends.elapsed() == pytest.approx(1.0)
            await trio.sleep(2)
            assert got == [pytest.approx(2.0)]


async def test_stalls_hold_bytes_for_their_length_and_lose_none(autojump_clock: MockClock) -> None:
    async with pair(everywhere(stalls_per_s=2.0, stall_s=0.3)) as ends, trio.open_nursery() as nursery:
        delays: list[float] = []

        async def read() -> None:
            while len(delays) < 400:
                for message in await ends.b.receive():
                    delays.append(ends.elapsed() - float(bytes(message)))

        nursery.start_soon(read)
        for _ in range(400):
            await ends.a.send([repr(ends.elapsed()).encode()])
            await trio.sleep(0.05)
    assert max(delays) <= 0.3 + 1e-9
    # Under stalls that begin as a Poisson process of rate r, 1 - exp(-r × 0.3) = 45 % of the time stands still.
    stalled = sum(delay > 0 for delay in delays) / len(delays)
    assert 0.3 < stalled < 0.6


async def test_a_new_latency_is_for_what_is_sent_from_now_on(autojump_clock: MockClock) -> None:
    async with pair(everywhere(latency_s=1.0)) as ends:
        await ends.a.send([b"slow"])
        ends.alice.set(everywhere(latency_s=0.1))
        await ends.a.send([b"behind it"])
        assert await gather(ends.b, 2) == [b"slow", b"behind it"]
        assert ends.elapsed() == pytest.approx(1.0)
        await ends.a.send([b"fast"])
        await gather(ends.b, 1)
        assert ends.elapsed() == pytest.approx(1.1)


# --- buffers, cancelling, closing -------------------------------------------------------------------------------


async def test_a_full_buffer_makes_the_sender_wait_and_a_cancelled_send_put_nothing_on_the_wire(
    autojump_clock: MockClock,
) -> None:
    async with pair(everywhere(latency_s=1.0)) as ends:
        await ends.a.send([bytes(BUFFER_BYTES)])
        with trio.move_on_after(0.5) as scope:
            await ends.a.send([b"never sent"])
        assert scope.cancelled_caught
        await ends.a.send([b"sent"])
        assert [len(message) for message in await gather(ends.b, 2)] == [BUFFER_BYTES, 4]
        with trio.move_on_after(5) as scope:
            await ends.b.receive()
        assert scope.cancelled_caught


async def test_last_words_arrive_and_then_the_end(autojump_clock: MockClock) -> None:
    async with pair(everywhere(latency_s=0.4, bandwidth_bytes_s=1000.0)) as ends:
        await ends.a.send([bytes(100), b"bye"])
        await ends.a.aclose()
        assert ends.elapsed() == 0
        for call in (ends.a.receive(), ends.a.send([b"late"])):
            with pytest.raises(PeerUnavailable):
                await call
        assert (await gather(ends.b, 2))[1] == b"bye"
        with pytest.raises(PeerUnavailable):
            await ends.b.receive()
        assert ends.elapsed() == pytest.approx(0.503)


async def test_a_handler_that_returns_still_gets_its_last_words_out(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(latency_s=0.0)
    server = ConditionedTransport(network.transport(A), everywhere(latency_s=0.2), slack_s=0.0)
    client = network.transport(B)

    async def greet(channel: Channel) -> None:
        await channel.send([b"hello"])

    async with server.run(greet), client.run(ignore):
        channel = await client.dial(server.address, timeout_s=1)
        assert await gather(channel, 1) == [b"hello"]
        with pytest.raises(PeerUnavailable):
            await channel.receive()


async def test_a_peer_that_does_not_read_cannot_hold_up_the_end(autojump_clock: MockClock) -> None:
    async with pair() as ends:
        with trio.move_on_after(1):
            while True:
                await ends.a.send([bytes(1_000_000)])
    assert ends.elapsed() <= 1 + LINGER_S


async def test_an_end_of_the_inner_channel_reaches_sender_and_receiver(autojump_clock: MockClock) -> None:
    async with pair(everywhere(latency_s=0.1)) as ends:
        ends.network.cut(A, B)
        with pytest.raises(PeerUnavailable):
            await ends.a.receive()
        with pytest.raises(PeerUnavailable):
            await ends.a.send([b"x"])


# --- partitions -------------------------------------------------------------------------------------------------


async def test_one_sides_partition_holds_both_directions_and_loses_nothing(autojump_clock: MockClock) -> None:
    async with pair() as ends, trio.open_nursery() as nursery:
        got: dict[str, float] = {}

        async def read(name: str, channel: Channel) -> None:
            assert await gather(channel, 2) == [b"1", b"2"]
            got[name] = ends.elapsed()

        nursery.start_soon(read, "a", ends.a)
        nursery.start_soon(read, "b", ends.b)
        await trio.testing.wait_all_tasks_blocked()
        ends.alice.set(CUT)
        for channel in (ends.a, ends.b):
            await channel.send([b"1"])
            await channel.send([b"2"])
        await trio.sleep(60)
        assert not got
        assert ends.a.bytes_heard == ends.b.bytes_heard == 0
        ends.alice.set(CALM)
        await trio.testing.wait_all_tasks_blocked()
        assert got == {"a": 60.0, "b": 60.0}


async def test_dials_through_a_partition_time_out_or_end_with_it(autojump_clock: MockClock) -> None:
    async with pair(CALM) as ends:
        address = ends.network.transport(B).address
        ends.alice.set(CUT)
        with pytest.raises(DeadlineExceeded):
            await ends.alice.dial(address, timeout_s=3)
        assert ends.elapsed() == pytest.approx(3)


async def test_a_dial_that_waited_for_the_partitions_end_succeeds(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(latency_s=0.0)
    alice = ConditionedTransport(network.transport(A), CUT, slack_s=0.0)
    bob = network.transport(B)
    async with bob.run(ignore), alice.run(ignore), trio.open_nursery() as nursery:

        async def heal() -> None:
            await trio.sleep(2)
            alice.set(CALM)

        nursery.start_soon(heal)
        channel = await alice.dial(bob.address, timeout_s=3)
        assert (channel.peer, trio.current_time()) == (B, 2)


async def test_even_the_end_of_a_channel_waits_for_the_partition(autojump_clock: MockClock) -> None:
    async with pair() as ends:
        ends.alice.set(CUT)
        await ends.a.send([b"held"])
        await ends.a.aclose()
        with trio.move_on_after(100) as scope:
            await ends.b.receive()
        assert scope.cancelled_caught
        ends.alice.set(CALM)
        assert await gather(ends.b, 1) == [b"held"]
        with pytest.raises(PeerUnavailable):
            await ends.b.receive()


async def test_a_transport_under_a_partition_ends_in_bounded_time(autojump_clock: MockClock) -> None:
    async with pair() as ends:
        ends.alice.set(CUT)
        await ends.a.send([b"held"])
    assert ends.elapsed() <= LINGER_S


@pytest.mark.parametrize(("cut_s", "survives"), [(1.0, True), (4.0, False)])
async def test_links_outlive_a_short_partition_and_both_sides_notice_a_long_one(
    autojump_clock: MockClock, cut_s: float, survives: bool
) -> None:
    network = MemoryNetwork(latency_s=0.0)
    lost: list[str] = []
    got: list[int] = []
    alice = ConditionedTransport(network.transport(A), CALM)
    a = Links(alice, lambda *_: None, lambda peer, error: lost.append(f"a: {peer}"))
    b = Links(
        network.transport(B),
        lambda peer, message, payload: got.append(message.request),  # type: ignore[union-attr]
        lambda peer, error: lost.append(f"b: {peer}"),
    )
    async with b.run(), a.run():
        a.send(b.address, StatusRequest(1))
        await trio.sleep(3)
        alice.set(CUT)
        a.send(b.address, StatusRequest(2))
        await trio.sleep(cut_s)
        assert sorted(lost) == ([] if survives else ["a: bob", "b: alice"])
        alice.set(CALM)
        await trio.sleep(30)
        a.send(b.address, StatusRequest(3))
        await trio.sleep(1)
        assert 3 in got
        assert (2 in got) or not survives


# --- the profile's file -----------------------------------------------------------------------------------------


def write(file: Path, text: str) -> None:
    partial = file.with_suffix(".part")
    partial.write_text(text)
    partial.replace(file)


async def test_the_file_is_read_again_when_it_changes(autojump_clock: MockClock, tmp_path: Path) -> None:
    file = tmp_path / "links.json"
    write(file, json.dumps({"links": []}))
    async with pair(CALM, file) as ends:
        write(file, json.dumps({"links": [{"from": A, "to": "*", "partition": True}]}))
        await trio.sleep(2 * POLL_S)
        await ends.a.send([b"held"])
        await ends.b.send([b"held too"])
        with trio.move_on_after(10) as scope:
            await ends.b.receive()
        assert scope.cancelled_caught
        write(file, json.dumps({"links": []}))
        assert await gather(ends.b, 1) == [b"held"]
        assert await gather(ends.a, 1) == [b"held too"]


@pytest.mark.parametrize("damage", [lambda file: write(file, "{"), lambda file: file.unlink()])
async def test_a_file_that_cannot_be_read_changes_nothing_and_is_counted(
    autojump_clock: MockClock, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    file = tmp_path / "links.json"
    write(file, json.dumps({"links": [{"latency_ms": 25}]}))
    network = MemoryNetwork()
    alice = conditioned(network.transport(A), str(file))
    assert isinstance(alice, ConditionedTransport)
    before = alice.profile
    async with alice.run(ignore):
        assert "refused_link_profiles" not in alice.statistics()
        damage(file)
        await trio.sleep(10)
        assert alice.profile is before
        assert alice.statistics()["refused_link_profiles"] == 1


def test_without_a_profile_nothing_is_wrapped() -> None:
    transport = MemoryNetwork().transport(A)
    assert conditioned(transport, None) is transport
    assert conditioned(transport, "") is transport
    with pytest.raises(InvalidRequest, match="no-such-place"):
        conditioned(transport, "no-such-place")


# --- libp2p's streams -------------------------------------------------------------------------------------------


async def test_streams_beside_the_channels_are_held_too() -> None:
    node, client = (Libp2pTransport(Identity.ephemeral(), NetConfig(listens=listens)) for listens in (True, False))
    wrapped = ConditionedTransport(client, CALM)
    cut = LinkProfile((LinkRow(client.peer, node.peer, {"partition": True}),))

    async with node.run(ignore), wrapped.run(ignore):
        node.serve_stream("/test/echo/1", lambda stream: _echo(stream))
        stream = await client.open_stream(node.address, "/test/echo/1", timeout_s=10)
        await stream.write(b"1")
        assert await stream.read(1) == b"1"
        wrapped.set(cut)
        with trio.move_on_after(0.2) as scope:
            await stream.write(b"2")
        assert scope.cancelled_caught
        with pytest.raises(DeadlineExceeded):
            await client.open_stream(node.address, "/test/echo/1", timeout_s=0.2)
        wrapped.set(CALM)
        stream = await client.open_stream(node.address, "/test/echo/1", timeout_s=10)
        await stream.write(b"3")
        assert await stream.read(1) == b"3"
        await stream.reset()


async def _echo(stream: object) -> None:
    while True:
        await stream.write(await stream.read(1))  # type: ignore[attr-defined]
