"""Membership: keeps one view of the swarm fresh by talking to its members.

Three habits, each bounded: what is mine is pushed to my neighbours (everybody, while the swarm is small); what was
pushed to me and was news is passed on once (only where the swarm is too large for everybody); and every round one
random neighbour is asked for what I lack, which repairs whatever the first two lost. Bootstrap members and former
members that are not in the view are tried again with backoff, so a swarm that was split, or whose first node restarted,
grows together, and a member whose link was down for longer than an offer lives finds back without its bootstrap.

Who only asks (a client) is told of withdrawals, too, over the connection it opened; the rest it hears when it asks.

Knows whom to call and when. Refuses to know streams (`Calls`) and Kademlia. Epidemic repair and rumours: Demers et al.,
"Epidemic algorithms for replicated database maintenance", 1987.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from paceline.dht import exchange, offers
from paceline.dht.exchange import Ask, Told
from paceline.dht.stretches import Want
from paceline.dht.view import CAPACITY, OfferBook
from paceline.wire.errors import InternalError, OfferRejected, Overloaded, PeerUnavailable, ProtocolViolation
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Offer, SignedOffer

Clock = Callable[[], float]

MAX_PULLS = 32
"""Answers taken from one member in a row."""

MAX_ASKERS = 256
"""Clients that are told of withdrawals, by one member."""

ASKER_ROUNDS = 10

FOUND = 1024
"""Offers kept beside a full view."""

MAX_LAPSED = 64
"""Former members that are remembered, and tried again."""


class Calls(Protocol):
    """One request to a member, one answer. `dht.streams` over libp2p; tests have their own."""

    async def call(self, to: PeerAddress, request: bytes) -> bytes:
        """Raises PeerUnavailable, within the implementation's own deadline, or ProtocolViolation."""
        ...


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """How eager a member is. Times in seconds."""

    bootstrap: tuple[PeerAddress, ...] = ()
    round_s: float = 2.0
    """Between two repairs by a random neighbour (jittered by half)."""
    push_all: int = 12
    """Up to this many members, an announcement goes straight to all of them. Beyond, rumours by way of neighbours cost
    less: a node's messages and connections then no longer grow with the swarm."""
    fanout: int = 4
    """Neighbours in a larger swarm."""
    era_s: float = 300.0
    """How long neighbours stay the same."""
    gather_s: float = 1.0
    """News waits this long for company before it is passed on; that a node has gone does not wait."""
    same_peer_s: float = 0.5
    """News of one peer is passed on at most this often, so that nobody floods the swarm with his own offers."""
    join_timeout_s: float = 10.0
    retry_s: tuple[float, float] = (0.25, 30.0)
    """First and longest pause before an unreachable member is tried again."""
    farewell_s: float = 1.0
    """How long a withdrawal may take."""
    capacity: int = CAPACITY


@dataclass(frozen=True, slots=True)
class _Failing:
    count: int
    retry_at: float


class Membership:
    """The view and the habits that keep it fresh. `clock`: unix seconds. `me`: own peer id."""

    def __init__(
        self, me: str, calls: Calls, config: MembershipConfig, clock: Clock, rng: random.Random | None = None
    ) -> None:
        self.book = OfferBook(config.capacity)
        self.found = OfferBook(FOUND)
        """Offers that were asked for by their layers while the view was full."""
        self._me = me
        self._calls = calls
        self._config = config
        self._clock = clock
        self._rng = rng or random.Random()
        self._own: SignedOffer | None = None
        self._failing: dict[str, _Failing] = {}
        self._lapsed: OrderedDict[str, PeerAddress] = OrderedDict()
        self._askers: OrderedDict[str, float] = OrderedDict()
        self._meter = exchange.meter()
        self._gathered: list[SignedOffer] = []
        self._urgent = trio.Event()
        self._passed: dict[str, tuple[float, bool]] = {}
        self._counts: Counter[str] = Counter()
        self._skew_s = 0.0
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Join, then keep the view fresh during the block. Raises PeerUnavailable where no bootstrap member answers."""
        if self._config.bootstrap:
            await self._join()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_repairing)
            nursery.start_soon(self._keep_passing_on)
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    def announce(self, signed: SignedOffer) -> None:
        """Put one's own newest offer into the view and push it in the background.

        Raises OfferRejected where nobody could accept it, or where the view already has a later one.
        """
        offer = offers.verify(signed, self._clock(), peer=self._me)
        if self._nursery is None:
            raise InternalError("announce() outside run()")
        if not self.book.accept(signed, self._clock()):
            raise OfferRejected(f"sequence {offer.sequence} is not after the previous one", reason="stale")
        self._own = signed
        self._nursery.start_soon(self._push, [signed], self.neighbours())

    async def withdraw(self, signed: SignedOffer) -> None:
        """Replace one's own offer by its withdrawal, and push that for at most `farewell_s`."""
        self.book.accept(signed, self._clock())
        self._own = None
        with trio.move_on_after(self._config.farewell_s):
            await self._push([signed], [*self.neighbours(), *self._audience()])

    def answer(self, peer: str, request: bytes) -> bytes:
        """Serve one request of a connected peer. Raises Overloaded or ProtocolViolation: the stream ends."""
        ask = exchange.decode_ask(request)
        self._meter.take(peer, self._clock(), exchange.cost(ask))
        self._counts["requests"] += 1
        lies = self.book.lies
        told, news = exchange.answer(ask, self.book, self._clock())
        self._gather(news)
        if self.book.lies > lies:
            raise ProtocolViolation("passes on offers that no honest member would", peer=peer)
        if ask.digest is not None:
            self._note_asker(peer)
        return exchange.encode(told)

    async def pull(self, member: PeerAddress) -> bool:
        """Take from one member all that the view lacks. False where it could not be reached or misbehaved."""
        for _ in range(MAX_PULLS):
            own = (self._own,) if self._own is not None else ()
            told = await self._ask(member, Ask(own, self.book.digest(self._clock())))
            if told is None:
                return False
            lies = self.book.lies
            news = self.book.merge(told.offers, self._clock())
            if self.book.lies > lies:
                self._note_failure(member.peer)
                return False
            if not told.more or not news:
                break
        return True

    async def fetch(self, member: PeerAddress, want: Want) -> int:
        """Take from one member offers of certain layers that are not known here. How many were news; 0, too, where it
        could not be reached or misbehaved.
        """
        now = self._clock()
        told = await self._ask(
            member, Ask(digest=self.book.digest(now, want) + self.found.digest(now, want), want=want)
        )
        if told is None:
            return 0
        lies, now = self.book.lies + self.found.lies, self._clock()
        news = len(self.book.merge(told.offers, now))
        strange = [it for it in told.offers if not self._knows(it, now)]
        news += len(self.found.merge(strange, now))
        if self.book.lies + self.found.lies > lies:
            self._note_failure(member.peer)
        self._counts["fetched"] += news
        return news

    def _knows(self, signed: SignedOffer, now: float) -> bool:
        try:
            return self.book.find(offers.peek(signed).peer, now) is not None
        except OfferRejected:
            return True  # counted by the book

    def live(self, model: str | None = None) -> list[Offer]:
        """The view, and what was found beside it."""
        now = self._clock()
        beside = [it for it in self.found.live(now, model) if self.book.find(it.peer, now) is None]
        return self.book.live(now, model) + beside

    def members(self) -> dict[str, PeerAddress]:
        """Everybody who can be called: whoever has a live offer, and the bootstrap members."""
        known = {it.peer: it for it in self._config.bootstrap}
        known |= {it.peer: it.at for it in self.book.live(self._clock()) if it.at.control}
        known.pop(self._me, None)
        return known

    def answers(self, peer: str) -> bool:
        """Whether the last call to it, if any, went well."""
        return peer not in self._failing

    def neighbours(self) -> list[PeerAddress]:
        """Whom to push to and to repair with: all, or a lasting choice of `fanout` in a large swarm."""
        known = self.members()
        if len(known) <= self._config.push_all:
            return list(known.values())
        era = int(self._clock() / self._config.era_s)
        return [known[peer] for peer in exchange.neighbours(self._me, known, self._config.fanout, era)]

    def statistics(self) -> dict[str, int]:
        """Counts since the start; `clock_skew_ms`: by how much members' clocks were ahead of this one, last seen."""
        talk = {f"exchange_{name}": count for name, count in sorted(self._counts.items())}
        skew = {"clock_skew_ms": round(self._skew_s * 1000), "peers_beside_view": len(self.found.live(self._clock()))}
        return self.book.statistics(self._clock()) | talk | skew | {"neighbours": len(self.neighbours())}

    async def _join(self) -> None:
        """Ask every bootstrap member at once; the first that answers is enough."""
        joined = trio.Event()

        async def knock(member: PeerAddress) -> None:
            pause = self._config.retry_s[0]
            while not await self.pull(member):
                await trio.sleep(pause)
                pause = min(2 * pause, 2.0)
            joined.set()

        with trio.move_on_after(self._config.join_timeout_s):
            async with trio.open_nursery() as nursery:
                for member in self._config.bootstrap:
                    if member.peer != self._me:
                        nursery.start_soon(knock, member)
                    else:
                        joined.set()
                await joined.wait()
                nursery.cancel_scope.cancel()
        if not joined.is_set():
            tried = ", ".join(f"{it.peer} at {' '.join(it.control)}" for it in self._config.bootstrap)
            raise PeerUnavailable(
                f"no member of the swarm answered within {self._config.join_timeout_s:.0f} s (tried {tried})",
                cure="check that one of them runs and can be reached from here",
            )

    async def _keep_repairing(self) -> None:
        while True:
            await trio.sleep(self._config.round_s * self._rng.uniform(0.5, 1.5))
            await self._repair()

    async def _keep_passing_on(self) -> None:
        while True:
            with trio.move_on_after(self._config.gather_s):
                await self._urgent.wait()
            self._urgent = trio.Event()
            self._pass_on()

    async def _repair(self) -> None:
        """One round: forget the expired, ask one reachable neighbour, and one who should be in the view and is not."""
        now = self._clock()
        self._forget(now)
        partners = self.neighbours()
        present = [it for it in partners if self.book.find(it.peer, now) is not None]
        missing = [it for it in partners if self.book.find(it.peer, now) is None] + list(self._lapsed.values())
        async with trio.open_nursery() as nursery:
            for group in (present, missing):
                if reachable := [it for it in group if self._may_try(it.peer)]:
                    nursery.start_soon(self.pull, self._rng.choice(reachable))

    def _forget(self, now: float) -> None:
        self.found.expire(now)
        for offer in self.book.expire(now):
            if offer.peer != self._me and offer.at.control:
                self._lapsed[offer.peer] = offer.at
        for peer in [peer for peer in self._lapsed if self.book.find(peer, now) is not None]:
            del self._lapsed[peer]
        while len(self._lapsed) > MAX_LAPSED:
            self._lapsed.popitem(last=False)
        known = self.members().keys() | self._lapsed.keys()
        self._failing = {peer: it for peer, it in self._failing.items() if peer in known}
        self._passed = {peer: past for peer, past in self._passed.items() if past[0] > now - 60.0}

    async def _push(self, news: Sequence[SignedOffer], to: Sequence[PeerAddress]) -> None:
        async with trio.open_nursery() as nursery:
            for member in to:
                if self._may_try(member.peer):
                    nursery.start_soon(self._push_to, member, exchange.batches(news))

    async def _push_to(self, member: PeerAddress, asks: Sequence[Ask]) -> None:
        for ask in asks:
            if await self._ask(member, ask) is None:
                return

    def _pass_on(self) -> None:
        """Push the gathered news once: to neighbours, where whoever made it does not reach everybody himself, and what
        says that a node is gone to those who only ask.
        """
        news, self._gathered = self._gathered, []
        if not news or self._nursery is None:
            return
        if len(self.members()) > self._config.push_all:
            self._counts["passed_on"] += len(news)
            self._nursery.start_soon(self._push, news, self.neighbours())
        if partings := [it for it in news if offers.is_withdrawal(offers.peek(it))]:
            self._nursery.start_soon(self._push, partings, self._audience())

    def _note_asker(self, peer: str) -> None:
        self._askers[peer] = self._clock()
        self._askers.move_to_end(peer)
        while len(self._askers) > MAX_ASKERS:
            self._askers.popitem(last=False)

    def _audience(self) -> list[PeerAddress]:
        """Who asked lately and is no member. Without addresses: they are reached by the connection they opened, or not
        at all.
        """
        since = self._clock() - ASKER_ROUNDS * self._config.round_s
        members = self.members()
        return [PeerAddress(peer) for peer, then in self._askers.items() if then >= since and peer not in members]

    def _gather(self, news: Sequence[SignedOffer]) -> None:
        now = self._clock()
        for signed in news:
            offer: Offer = offers.peek(signed)
            then, was_withdrawal = self._passed.get(offer.peer, (-1e9, False))
            parting = offers.is_withdrawal(offer) and not was_withdrawal
            if parting or now - then >= self._config.same_peer_s:
                self._passed[offer.peer] = now, offers.is_withdrawal(offer)
                self._gathered.append(signed)
            if parting:
                self._urgent.set()

    async def _ask(self, member: PeerAddress, ask: Ask) -> Told | None:
        """One call with its bookkeeping; None where it failed."""
        self._counts["calls"] += 1
        try:
            told = exchange.decode_told(await self._calls.call(member, exchange.encode(ask)))
        except (PeerUnavailable, ProtocolViolation, Overloaded):
            self._counts["calls_failed"] += 1
            self._note_failure(member.peer)
            return None
        self._failing.pop(member.peer, None)
        self._skew_s = told.now - self._clock()
        return told

    def _may_try(self, peer: str) -> bool:
        failing = self._failing.get(peer)
        return failing is None or failing.retry_at <= self._clock()

    def _note_failure(self, peer: str) -> None:
        first, longest = self._config.retry_s
        count = self._failing[peer].count + 1 if peer in self._failing else 1
        pause = min(longest, first * 2 ** min(count, 16)) * self._rng.uniform(0.5, 1.0)
        self._failing[peer] = _Failing(count, self._clock() + pause)
