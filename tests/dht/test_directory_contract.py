"""What every directory promises, on the memory swarm in virtual time and on libp2p hosts over loopback.

A world makes directories that can see each other. `settled` waits, in the world's own time, until a view fulfils a
condition; it gives up with an assertion after a bound.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import pytest
import trio
from dht_hosts import loopback, way_in
from dht_making import NOW, offer, person

from paceline.dht import offers
from paceline.dht.directory import Directory
from paceline.dht.kademlia import DirectoryConfig, KademliaDirectory
from paceline.dht.membership import MembershipConfig
from paceline.dht.memory import MemoryDirectory, MemorySwarm
from paceline.net.identity import Identity
from paceline.wire.errors import OfferRejected
from paceline.wire.offers import Offer


class World(Protocol):
    """Directories that belong to one swarm."""

    def now(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...
    def join(self, who: Identity) -> AbstractAsyncContextManager[Directory]: ...


class MemoryWorld:
    """Everything in this process, in virtual time."""

    def __init__(self) -> None:
        self.swarm = MemorySwarm(clock=self.now)
        self._now = NOW

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        self._now += seconds
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def join(self, who: Identity) -> AsyncIterator[Directory]:
        directory = MemoryDirectory(self.swarm, who)
        async with directory.run():
            yield directory


EAGER = MembershipConfig(round_s=0.3)


class LoopbackWorld:
    """libp2p hosts on 127.0.0.1. Whoever joins is told of the previous one only: any member is a way in."""

    def __init__(self) -> None:
        self._last: tuple[str, ...] = ()

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    @asynccontextmanager
    async def join(self, who: Identity) -> AsyncIterator[Directory]:
        async with loopback(who) as transport:
            directory = KademliaDirectory(transport, who, DirectoryConfig(self._last, membership=EAGER))
            self._last = way_in(transport)
            async with directory.run():
                yield directory


WORLDS: dict[str, Callable[[], Any]] = {"memory": MemoryWorld, "loopback": LoopbackWorld}


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    made: World = WORLDS[request.param]()
    return made


async def settled(world: World, directory: Directory, wanted: set[str], model: str | None = None) -> list[Offer]:
    """The view, once exactly the wanted peers are in it."""
    seen: list[Offer] = []
    for _ in range(400):
        seen = list(await directory.offers(model))
        if {it.peer for it in seen} == wanted:
            return seen
        await world.sleep(0.05)
    raise AssertionError(f"saw {[it.peer for it in seen]}, wanted {wanted}")


def fresh(world: World, who: Identity, *, model: str = "toy", lifetime: float = 12.0) -> Offer:
    return offers.stamp(offer(who, model=model), world.now(), lifetime)


async def test_what_one_announces_the_others_see(world: World) -> None:
    alice, bob = person(1), person(2)
    async with world.join(alice) as one, world.join(bob) as two:
        await one.announce(fresh(world, alice))
        await two.announce(fresh(world, bob, model="other"))
        for directory in (one, two):
            await settled(world, directory, {alice.peer, bob.peer})
            await settled(world, directory, {alice.peer}, "toy")
            await settled(world, directory, {bob.peer}, "other")
            await settled(world, directory, set(), "absent")


async def test_a_newer_offer_replaces_the_older(world: World) -> None:
    alice, bob = person(1), person(2)
    async with world.join(alice) as one, world.join(bob) as two:
        first = fresh(world, alice)
        await one.announce(first)
        await settled(world, two, {alice.peer})
        second = offers.stamp(offer(alice, model="other"), world.now(), 12.0, after=first.sequence)
        await one.announce(second)
        (seen,) = await settled(world, two, {alice.peer}, "other")
        assert seen == second


async def test_whoever_stops_announcing_vanishes_when_the_offer_ends(world: World) -> None:
    alice, bob = person(1), person(2)
    async with world.join(alice) as one, world.join(bob) as two:
        await one.announce(fresh(world, alice, lifetime=1.5))
        await settled(world, two, {alice.peer})
        await settled(world, two, set())
        assert await one.offers() == []


async def test_a_withdrawn_node_is_gone_at_once_and_may_come_back(world: World) -> None:
    alice, bob = person(1), person(2)
    async with world.join(alice) as one, world.join(bob) as two:
        await one.announce(fresh(world, alice, lifetime=100))
        (seen,) = await settled(world, two, {alice.peer})
        await one.withdraw()
        await settled(world, two, set())
        again = offers.stamp(offer(alice), world.now(), 12.0, after=seen.sequence + 2000)
        await one.announce(again)
        assert await settled(world, two, {alice.peer}) == [again]


async def test_an_offer_nobody_could_accept_is_refused_to_its_own_node(world: World) -> None:
    alice, bob = person(1), person(2)
    async with world.join(alice) as one:
        for bad in (fresh(world, bob), fresh(world, alice, lifetime=500), fresh(world, alice, lifetime=-1)):
            with pytest.raises(OfferRejected):
                await one.announce(bad)
        assert await one.offers() == []


async def test_withdrawing_nothing_is_nothing(world: World) -> None:
    async with world.join(person(1)) as one:
        await one.withdraw()
        assert one.statistics()["peers"] == 0


async def test_statistics_count(world: World) -> None:
    alice = person(1)
    async with world.join(alice) as one:
        await one.announce(fresh(world, alice))
        assert one.statistics()["peers"] == 1
        assert one.statistics()["offers_accepted"] == 1
