"""The exchange habits in virtual time: joining, spreading, vanishing, healing, and bounds."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from dht_making import NOW, offer, person
from hypothesis import given
from hypothesis import strategies as st

from paceline.dht import exchange, offers
from paceline.dht.exchange import Ask, Told
from paceline.dht.membership import Membership, MembershipConfig
from paceline.net.identity import Identity
from paceline.wire.errors import Malformed, OfferRejected, Overloaded, PacelineError, PeerUnavailable
from paceline.wire.messages import PeerAddress

LATENCY_S = 0.01
SILENCE_S = 2.0


def clock() -> float:
    return NOW + trio.current_time()


class Net:
    """Calls between memberships of one test. A `dead` one refuses, a `silent` one never answers."""

    def __init__(self) -> None:
        self.members: dict[str, Membership] = {}
        self.dead: set[str] = set()
        self.silent: set[str] = set()
        self.groups: dict[str, int] = {}
        self.calls = 0

    def caller(self, me: str) -> Caller:
        return Caller(self, me)

    @asynccontextmanager
    async def join(self, who: Identity, *bootstrap: Identity, **options: object) -> AsyncIterator[Membership]:
        config = MembershipConfig(bootstrap=tuple(address(it) for it in bootstrap), **options)  # type: ignore[arg-type]
        member = Membership(who.peer, self.caller(who.peer), config, clock, random.Random(who.peer))
        self.members[who.peer] = member
        async with member.run():
            yield member


class Caller:
    def __init__(self, net: Net, me: str) -> None:
        self._net = net
        self._me = me

    async def call(self, to: PeerAddress, request: bytes) -> bytes:
        net = self._net
        net.calls += 1
        assert len(request) <= exchange.MAX_EXCHANGE_BYTES
        await trio.sleep(2 * LATENCY_S)
        if to.peer in net.silent or self._me in net.silent:
            await trio.sleep(SILENCE_S)
            raise PeerUnavailable("silent", peer=to.peer)
        apart = net.groups.get(to.peer, 0) != net.groups.get(self._me, 0)
        if apart or {to.peer, self._me} & net.dead or to.peer not in net.members:
            raise PeerUnavailable("refused", peer=to.peer)
        try:
            return net.members[to.peer].answer(self._me, request)
        except PacelineError as error:
            raise PeerUnavailable("reset by the other side", peer=to.peer) from error


def address(who: Identity) -> PeerAddress:
    return PeerAddress(who.peer, ("/ip4/127.0.0.1/tcp/4001",))


def announce(member: Membership, who: Identity, lifetime: float = 12.0) -> None:
    member.announce(offers.sign(who, offers.stamp(offer(who), clock(), lifetime)))


async def keep_announcing(member: Membership, who: Identity) -> None:
    while True:
        announce(member, who)
        await trio.sleep(4.0)


def seen(member: Membership) -> set[str]:
    return {it.peer for it in member.book.live(clock())}


@asynccontextmanager
async def swarm(net: Net, count: int, **options: object) -> AsyncIterator[list[Membership]]:
    """`count` announcing members, each joined through a different earlier one."""
    made: list[Membership] = []
    scopes = []
    async with trio.open_nursery() as nursery:

        async def live(n: int, started: trio.Event) -> None:
            through = [person(1 + (n - 1) // 2)] if n else []
            async with net.join(person(n + 1), *through, **options) as member:
                made.append(member)
                started.set()
                await keep_announcing(member, person(n + 1))

        for n in range(count):
            started = trio.Event()
            nursery.start_soon(live, n, started)
            await started.wait()
            scopes.append(n)
        yield made
        nursery.cancel_scope.cancel()


async def test_a_fresh_client_has_the_whole_view_after_one_call(autojump_clock: trio.testing.MockClock) -> None:
    net = Net()
    async with swarm(net, 10):
        await trio.sleep(9)
        for n in (1, 5, 10):
            before = trio.current_time()
            async with net.join(person(40 + n), person(n)) as client:
                assert len(seen(client)) == 10
                assert trio.current_time() - before == pytest.approx(2 * LATENCY_S)


async def test_an_announcement_reaches_everybody_at_once_in_a_small_swarm(
    autojump_clock: trio.testing.MockClock,
) -> None:
    net = Net()
    async with swarm(net, 10) as members:
        await trio.sleep(9)
        async with net.join(person(60), person(7)) as fresh:
            announce(fresh, person(60))
            await trio.sleep(3 * LATENCY_S)
            assert all(person(60).peer in seen(it) for it in members)


async def test_a_dead_node_vanishes_within_its_lifetime_and_a_withdrawn_one_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    net = Net()
    async with swarm(net, 8) as members:
        await trio.sleep(6)
        gone, leaver = person(3), person(5)
        net.dead.add(gone.peer)
        last = net.members[leaver.peer].book.find(leaver.peer, clock())
        assert last is not None
        others = [it for it in members if it not in (net.members[gone.peer], net.members[leaver.peer])]
        await net.members[leaver.peer].withdraw(offers.sign(leaver, offers.withdrawal(last, clock())))
        assert all(leaver.peer not in seen(it) for it in others)
        await trio.sleep(12.0)
        assert all(gone.peer not in seen(it) for it in others)
        assert all(len(seen(it)) >= 6 for it in others)


async def test_a_client_hears_of_a_withdrawal_before_it_asks_again(autojump_clock: trio.testing.MockClock) -> None:
    net = Net()
    async with swarm(net, 4), net.join(person(50), person(2), round_s=20.0) as client:
        await trio.sleep(1)
        async with net.join(person(9), person(1)) as leaver:
            announce(leaver, person(9))
            await trio.sleep(0.1)
            await client.pull(address(person(3)))
            last = client.book.find(person(9).peer, clock())
            assert last is not None
            await leaver.withdraw(offers.sign(person(9), offers.withdrawal(last, clock())))
            await trio.sleep(1.0)
            assert person(9).peer not in seen(client)


async def test_rumours_and_repair_reach_everybody_in_a_larger_swarm(autojump_clock: trio.testing.MockClock) -> None:
    net = Net()
    async with swarm(net, 24, push_all=5, fanout=3) as members:
        await trio.sleep(16)
        assert all(len(seen(it)) == 24 for it in members)
        async with net.join(person(60), person(20), push_all=5, fanout=3) as fresh:
            announce(fresh, person(60))
            await trio.sleep(6)
            assert all(person(60).peer in seen(it) for it in members)
        assert sum(it.statistics().get("exchange_passed_on", 0) for it in members) > 0


async def test_the_first_node_restarts_without_memory_and_is_found_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    net = Net()
    async with net.join(person(2), join_timeout_s=5.0) as second:
        async with net.join(person(1)) as first:
            pass
        assert seen(first) == set()
        net.members.pop(person(1).peer)
        async with net.join(person(3), person(2), person(1)) as third:
            announce(second, person(2), 100)
            announce(third, person(3), 100)
            await trio.sleep(20)
            async with net.join(person(1)) as reborn:
                announce(reborn, person(1), 100)
                await trio.sleep(40)
                everybody = {person(n).peer for n in (1, 2, 3)}
                assert seen(reborn) == seen(second) == seen(third) == everybody


async def test_two_halves_of_a_swarm_grow_together_after_a_split(autojump_clock: trio.testing.MockClock) -> None:
    net = Net()
    async with swarm(net, 8) as members:
        await trio.sleep(6)
        net.groups = {person(n).peer: n % 2 for n in range(1, 9)}
        await trio.sleep(30)
        assert all(len(seen(it)) == 4 for it in members)
        net.groups = {}
        await trio.sleep(60)
        assert all(len(seen(it)) == 8 for it in members)


async def test_a_member_that_was_cut_off_finds_back_though_its_bootstrap_died(
    autojump_clock: trio.testing.MockClock,
) -> None:
    net = Net()
    async with swarm(net, 7) as members:
        await trio.sleep(6)
        net.dead.add(person(1).peer)
        net.groups = {person(2).peer: 1, person(3).peer: 2}
        await trio.sleep(40)
        assert seen(net.members[person(3).peer]) == {person(3).peer}
        net.groups = {}
        await trio.sleep(60)
        alive = [it for it in members if it is not net.members[person(1).peer]]
        assert all(len(seen(it)) == 6 for it in alive)


async def test_joining_nobody_names_whom_it_tried(autojump_clock: trio.testing.MockClock) -> None:
    net = Net()
    net.silent.add(person(2).peer)
    with pytest.raises(PeerUnavailable, match=person(1).peer) as caught:
        async with net.join(person(3), person(1), person(2)):
            pass
    assert person(2).peer in str(caught.value)
    assert trio.current_time() == pytest.approx(10.0)


async def test_one_silent_bootstrap_member_does_not_delay_a_join(autojump_clock: trio.testing.MockClock) -> None:
    net = Net()
    net.silent.add(person(2).peer)
    async with net.join(person(1)), net.join(person(3), person(2), person(1)):
        assert trio.current_time() == pytest.approx(2 * LATENCY_S)


async def test_the_dead_are_not_called_every_round(autojump_clock: trio.testing.MockClock) -> None:
    net = Net()
    async with net.join(person(1)), net.join(person(3), person(2), person(1)):
        await trio.sleep(5)
        before = net.members[person(3).peer].statistics()["exchange_calls_failed"]
        await trio.sleep(600)
        after = net.members[person(3).peer].statistics()["exchange_calls_failed"]
        assert 10 <= after - before <= 60


async def test_an_own_offer_that_is_not_later_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    net = Net()
    async with net.join(person(1)) as member:
        announce(member, person(1))
        with pytest.raises(OfferRejected, match="not after"):
            announce(member, person(1))


async def test_whoever_asks_too_often_is_turned_away_and_others_are_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    net = Net()
    async with net.join(person(1)) as member:
        for _ in range(int(exchange.REQUESTS_BURST)):
            member.answer("greedy", exchange.encode(Ask()))
        with pytest.raises(Overloaded):
            member.answer("greedy", exchange.encode(Ask()))
        assert exchange.decode_told(member.answer("patient", exchange.encode(Ask()))).now == clock()
        await trio.sleep(1)
        member.answer("greedy", exchange.encode(Ask()))


async def test_an_answerer_that_always_has_more_and_never_news_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    net = Net()

    class Endless(Caller):
        async def call(self, to: PeerAddress, request: bytes) -> bytes:
            net.calls += 1
            await trio.sleep(LATENCY_S)
            return exchange.encode(Told(more=True))

    member = Membership("me", Endless(net, "me"), MembershipConfig(), clock)
    assert await member.pull(address(person(1)))
    assert net.calls == 1


async def test_a_member_that_passes_on_a_forged_offer_is_left_alone_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    net = Net()
    good = offers.sign(person(5), offers.stamp(offer(person(5)), clock(), 12))
    forged = msgspec.structs.replace(good, signature=bytes(64))

    class Liar(Caller):
        async def call(self, to: PeerAddress, request: bytes) -> bytes:
            await trio.sleep(LATENCY_S)
            return exchange.encode(Told((forged,), more=True))

    member = Membership("me", Liar(net, "me"), MembershipConfig(), clock)
    assert not await member.pull(address(person(1)))
    assert not member.answers(person(1).peer)
    assert seen(member) == set()


def test_many_offers_cost_more_than_one_request() -> None:
    meter = exchange.meter()
    many = exchange.cost(Ask((offers.sign(person(1), offer(person(1))),) * 400))
    for _ in range(4):
        meter.take("pushy", NOW, many)
    with pytest.raises(Overloaded):
        meter.take("pushy", NOW, many)
    meter.take("pushy", NOW + 1, 1.0)


@given(st.binary(max_size=200))
def test_garbage_on_the_protocol_is_a_typed_error(data: bytes) -> None:
    for decode in (exchange.decode_ask, exchange.decode_told):
        with pytest.raises(Malformed):
            decode(data)


def test_batches_respect_their_bounds_and_lose_nothing() -> None:
    many = [offers.sign(person(1), offers.stamp(offer(person(1)), NOW, 12, after=n)) for n in range(1500)]
    asks = exchange.batches(many)
    assert [it for ask in asks for it in ask.offers] == many
    assert len(asks) > 1
    assert all(len(exchange.encode(ask)) <= exchange.MAX_EXCHANGE_BYTES for ask in asks)
    assert exchange.batches([]) == []


def test_neighbours_stay_while_others_come_and_go() -> None:
    members = {f"peer{n}" for n in range(100)}
    mine = exchange.neighbours("me", members, 6, era=1)
    assert len(mine) == 6
    bystander = next(it for it in sorted(members) if it not in mine)
    assert exchange.neighbours("me", members - {bystander}, 6, era=1) == mine
    assert len(set(exchange.neighbours("me", members - {mine[0]}, 6, era=1)) & set(mine)) == 5
    assert exchange.neighbours("you", members, 6, era=1) != mine
    assert exchange.neighbours("me", members, 6, era=2) != mine
