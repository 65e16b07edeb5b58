"""Dial-back on real sockets: who is dialled, what is proved, and that a look-in leaves nothing behind."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from paceline.net import dialback
from paceline.net.doors import HostDoors
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.links import Links
from paceline.net.relaying import CIRCUIT
from paceline.net.transport import Channel
from paceline.wire.dialback import Dialed, DialMe
from paceline.wire.errors import PacelineError


async def ignore(channel: Channel) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def peer(config: NetConfig = NetConfig()) -> AsyncIterator[Libp2pTransport]:
    transport = Libp2pTransport(Identity.ephemeral(), config)
    transport._doors = HostDoors(transport, transport._handshake, dial_s=0.3)
    async with transport.run(ignore):
        yield transport


def doors(transport: Libp2pTransport) -> HostDoors:
    assert transport.doors is not None
    return transport.doors


async def test_a_member_dials_back_and_proves_the_key_at_both_ports() -> None:
    async with peer() as member:
        asker = Links(Libp2pTransport(Identity.ephemeral()), lambda *message: None)
        transport = asker._transport
        assert isinstance(transport, Libp2pTransport)
        async with asker.run():
            with trio.fail_after(20):
                answer = await doors(transport).ask(member.address, doors(transport).ports)
            assert answer == Dialed("127.0.0.1", control=True, data=True)
            await trio.sleep(0.1)
            assert asker.statistics().errors == {}
            assert not [name for name in transport.statistics() if name.startswith("refused")]
            assert member.statistics()["dial_backs"] == 1
            connection = await member.dial(transport.address, timeout_s=10)
            assert connection.peer == transport.peer


async def test_a_port_of_another_key_and_a_closed_one_look_the_same() -> None:
    async with peer() as member, peer() as asker, peer() as third:
        theirs, closed = doors(third).ports, DialMe(1, 2)
        for question in (theirs, closed, DialMe(theirs.control), DialMe(0, doors(asker).ports.control)):
            began = trio.current_time()
            with trio.fail_after(20):
                answer = await doors(asker).ask(member.address, question)
            assert answer == Dialed("127.0.0.1")
            assert trio.current_time() - began >= 0.3, "a failure is told when the time is up"
        assert third.statistics().get("channels_direct", 0) == 0


async def test_garbage_is_answered_with_nothing_and_a_circuit_shows_no_address() -> None:
    async with peer(NetConfig(relay=True)) as member, peer() as asker, peer() as no_relay, peer() as other:
        for garbage in (b"", b"\xc1" * 50, b"\x93\x01\xce\xff\xff\xff\xff\x71", bytes(600)):
            stream = await asker.open_stream(member.address, dialback.PROTOCOL, timeout_s=5)
            await stream.write(struct.pack(">H", len(garbage)) + garbage)
            with pytest.raises(PacelineError), trio.fail_after(5):
                await stream.read(1)
        assert "dial_backs" not in member.statistics()
        with trio.fail_after(20):
            assert await doors(asker).go_relayed([no_relay.address, member.address])
            assert asker.address.control == (f"{member.address.control[0]}/p2p/{member.peer}{CIRCUIT}",)
            assert not asker.address.data
            answer = await doors(other).ask(asker.address, doors(other).ports)
        assert answer.refused == "no_address"
        doors(asker).go_direct()
        assert asker.address.control[0].endswith(f"/tcp/{doors(asker).ports.control}")


async def test_where_nobody_relays_the_addresses_stay() -> None:
    async with peer() as member, peer() as asker:
        before = asker.address
        with trio.fail_after(20):
            assert not await doors(asker).go_relayed([member.address])
        assert asker.address == before
