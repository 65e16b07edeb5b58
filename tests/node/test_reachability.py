"""A node finds out whether others can dial it, and announces accordingly, among honest and other members."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from paceline.dht.kademlia import DirectoryConfig, KademliaDirectory
from paceline.engine.toy import ToyModel, ToyShard
from paceline.net.dialback import ASK_S
from paceline.net.doors import HostDoors
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.memory_doors import MemoryDoors, MemoryInternet
from paceline.net.transport import Channel
from paceline.node import reachability
from paceline.node.engine_thread import InlineEngine
from paceline.node.node import Node
from paceline.node.reachability import UNKNOWN_AGAIN_S
from paceline.node.services import LoadedService
from paceline.wire.dialback import Dialed
from paceline.wire.ids import Span
from paceline.wire.messages import PeerAddress
from tests.swarming import LAYERS, MEASURED, REVISION, ToySwarm, collect, options, toy_swarm

OUTSIDE, INSIDE = "9.9.9.9", "192.168.1.7"


class Street:
    """A toy swarm whose members stand in the open, and the newcomer who is examined."""

    def __init__(self, swarm: ToySwarm) -> None:
        self.swarm = swarm
        self.internet = MemoryInternet()
        self.members: list[Node] = []

    def door(self, of: Node) -> MemoryDoors:
        return self.internet.find(of.me)

    async def newcomer(self, *, host: str = OUTSIDE, outside: str = OUTSIDE, natted: bool = False) -> Node:
        def place(peer: str) -> MemoryDoors:
            made = self.internet.place(peer, host, outside=outside)
            if natted:
                made.reach.clear()
            return made

        return await self.swarm.node("newcomer", (0, 12), door=place)


@asynccontextmanager
async def street(folder: Path, members: int = 3) -> AsyncIterator[Street]:
    async with toy_swarm(folder) as swarm:
        made = Street(swarm)
        for n in range(members):
            host = f"8.8.{n}.1"
            made.members.append(
                await swarm.node(f"member-{n}", (0, 12), door=lambda peer, host=host: made.internet.place(peer, host))  # type: ignore[misc]
            )
        yield made


async def told(node: Node, state: str) -> dict[str, object]:
    with trio.fail_after(60):
        while node.status()["reachability"]["state"] != state:
            await trio.sleep(0.1)
    account: dict[str, object] = node.status()["reachability"]
    return account


async def test_who_can_be_dialled_says_so_and_changes_nothing(autojump_clock: object, tmp_path: Path) -> None:
    async with street(tmp_path) as it:
        node = await it.newcomer()
        before = node.links.address
        account = await told(node, "reachable")
        assert (account["control"], account["data"], account["asked"], account["answered"]) == (True, True, 3, 3)
        assert account["reached_at"] == [OUTSIDE]
        assert account["warning"] == ""
        assert node.links.address == before
        assert {(host, port) for _, host, port in it.internet.dialled if host == OUTSIDE} == {
            (OUTSIDE, 4001),
            (OUTSIDE, 4002),
        }


async def test_behind_a_router_it_announces_a_circuit_and_still_serves(autojump_clock: object, tmp_path: Path) -> None:
    async with street(tmp_path) as it:
        it.door(it.members[1]).relays = True
        node = await it.newcomer(host=INSIDE, natted=True)
        account = await told(node, "relayed")
        assert account["control"] is False
        relay = it.members[1].me
        assert node.links.address.control == (f"/ip4/8.8.1.1/tcp/4001/p2p/{relay}/p2p-circuit",)
        assert node.links.address.data == ()
        await trio.sleep(0.1)
        (offer,) = [offer for offer in await node.directory.offers() if offer.peer == node.me]
        assert offer.at == node.links.address
        assert node.links.address not in it.members[0].directory.everybody(), "nobody takes it for a server"
        async with it.swarm.client() as client:
            stream = await client.generate([1, 2, 3], options(trusted=frozenset([node.me])))
            assert await collect(stream) == it.swarm.expected([1, 2, 3], 16)


async def test_where_nobody_relays_the_cure_is_told_and_it_asks_again_later(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachability, "AGAIN_S", 15.0)
    async with street(tmp_path) as it:
        node = await it.newcomer(natted=True)
        before = node.links.address
        account = await told(node, "unreachable")
        assert "4001" in str(account["warning"])
        assert "--relay" in str(account["cure"])
        assert node.links.address == before
        it.door(node).reach = {4001, 4002}
        await trio.sleep(20)
        account = await told(node, "reachable")
        assert account["warning"] == ""


async def test_one_liar_of_three_is_outvoted_either_way(autojump_clock: object, tmp_path: Path) -> None:
    async with street(tmp_path) as it:
        it.door(it.members[0]).lie = lambda honest: Dialed(honest.host)
        honest = await it.newcomer()
        await told(honest, "reachable")
    async with street(tmp_path) as it:
        it.door(it.members[0]).lie = lambda honest: Dialed("6.6.6.6", control=True, data=True)
        hidden = await it.newcomer(natted=True)
        await told(hidden, "unreachable")
        assert not [at for at in hidden.links.address.control if "6.6.6.6" in at]


async def test_who_does_not_answer_and_who_answers_garbage_do_not_count(autojump_clock: object, tmp_path: Path) -> None:
    async with street(tmp_path) as it:
        it.door(it.members[0]).silent = True
        it.door(it.members[1]).lie = lambda honest: msgspec.structs.replace(honest, host="x" * 1000)
        node = await it.newcomer(natted=True)
        account = await told(node, "unreachable")
        assert (account["asked"], account["answered"]) == (3, 1)


async def test_contradiction_and_silence_leave_everything_as_it_is(autojump_clock: object, tmp_path: Path) -> None:
    async with street(tmp_path, members=2) as it:
        it.door(it.members[0]).lie = lambda honest: Dialed(honest.host)
        node = await it.newcomer()
        before = node.links.address
        await trio.sleep(2 * ASK_S)
        account = node.status()["reachability"]
        assert (account["state"], account["answered"], account["control"]) == ("unknown", 2, None)
        assert node.links.address == before
        it.door(it.members[0]).lie = lambda honest: honest
        await trio.sleep(1.3 * UNKNOWN_AGAIN_S)
        await told(node, "reachable")


async def test_a_first_node_has_nobody_to_ask_and_asks_when_somebody_comes(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with street(tmp_path, members=0) as it:
        node = await it.newcomer()
        await trio.sleep(5)
        assert node.status()["reachability"]["state"] == "unknown"
        await it.swarm.node("second", (0, 12), door=lambda peer: it.internet.place(peer, "8.8.4.4"))
        await trio.sleep(1.3 * UNKNOWN_AGAIN_S)
        await told(node, "reachable")


async def test_an_address_that_the_machine_does_not_know_is_announced_once_two_have_reached_it(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with street(tmp_path) as it:
        node = await it.newcomer(host="10.0.0.5", outside="7.7.7.7")
        await told(node, "reachable")
        assert node.links.address.control == ("/ip4/10.0.0.5/tcp/4001", "/ip4/7.7.7.7/tcp/4001")
    async with street(tmp_path, members=1) as it:
        node = await it.newcomer(host="10.0.0.5", outside="7.7.7.7")
        account = await told(node, "reachable")
        assert node.links.address.control == ("/ip4/10.0.0.5/tcp/4001",), "one member's word is not enough"
        assert account["cure"] == "announce it: --announce 7.7.7.7"
    async with street(tmp_path) as it:
        node = await it.newcomer(host="10.0.0.5", outside="127.0.0.1")
        account = await told(node, "reachable")
        assert node.links.address.control == ("/ip4/10.0.0.5/tcp/4001",), "what others cannot use is not told"
        assert account["warning"] == ""


async def test_a_closed_data_port_is_not_announced(autojump_clock: object, tmp_path: Path) -> None:
    async with street(tmp_path) as it:

        def place(peer: str) -> MemoryDoors:
            made = it.internet.place(peer, OUTSIDE)
            made.reach = {4001}
            return made

        node = await it.swarm.node("newcomer", (0, 12), door=place)
        account = await told(node, "reachable")
        assert "4002" in str(account["warning"])
        assert node.links.address.control
        assert node.links.address.data == ()


async def test_new_addresses_are_checked_at_once(autojump_clock: object, tmp_path: Path) -> None:
    async with street(tmp_path) as it:
        node = await it.newcomer()
        await told(node, "reachable")
        door = it.door(node)

        def dials() -> int:
            return sum(host == door.outside for _, host, _ in it.internet.dialled)

        asked = dials()
        await trio.sleep(35)
        assert dials() == asked, "nothing has changed"
        door.hosts, door.outside = ("9.9.9.10",), "9.9.9.10"
        await trio.sleep(33)
        assert dials() > 0
        assert node.links.address.control == ("/ip4/9.9.9.10/tcp/4001",)


async def test_on_sockets_a_node_that_listens_where_nobody_sees_it_goes_behind_the_relay() -> None:
    """It listens on 127.0.0.2 and calls from 127.0.0.1: the meeting point dials that, and reaches nobody there."""
    meeting, who, caller = Identity.ephemeral(), Identity.ephemeral(), Identity.ephemeral()
    relay = Libp2pTransport(meeting, NetConfig(relay=True, data=False))
    relay._doors = HostDoors(relay, relay._handshake, dial_s=0.3)
    async with trio.open_nursery() as nursery, relay.run(hang_up):
        directory = KademliaDirectory(relay, meeting)
        async with directory.run():
            bootstrap = (f"{relay.address.control[0]}/p2p/{relay.peer}",)
            transport = Libp2pTransport(who, NetConfig(listen_host="127.0.0.2"))
            shard = ToyShard(ToyModel(layers=LAYERS), Span(0, LAYERS), 1 << 12)
            node = Node(
                transport,
                KademliaDirectory(transport, who, DirectoryConfig(bootstrap)),
                [LoadedService("toy", REVISION, shard, MEASURED)],
                unix_time=time.time,
                engine=InlineEngine(),
            )
            nursery.start_soon(node.run)
            await told(node, "relayed")
            circuit = (f"{bootstrap[0]}/p2p-circuit",)
            with trio.fail_after(20):
                while [offer.at.control for offer in await directory.offers()] != [circuit]:
                    await trio.sleep(0.05)
            assert node.links.address == PeerAddress(node.me, circuit)
            assert directory.everybody() == []
            dialer = Libp2pTransport(caller, NetConfig(listens=False))
            async with dialer.run(hang_up):
                channel = await dialer.dial(node.links.address, timeout_s=20)
                assert channel.peer == node.me
            nursery.cancel_scope.cancel()


async def hang_up(channel: Channel) -> None:
    await channel.aclose()
