"""The directory over libp2p: a warm view by the exchange protocol, Kademlia behind it.

Composition and nothing else: signs, hands to `Membership` (fast, complete, seconds old) and to `Kad` (slow, scales,
minutes old), and asks the second only where the first knows nobody. Why two: docs/adr/0004-directory.md.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from paceline.dht import offers, stretches
from paceline.dht.kad import Kad, KadConfig
from paceline.dht.membership import Membership, MembershipConfig
from paceline.dht.streams import StreamCalls
from paceline.dht.stretches import Want
from paceline.net.dialback import is_direct
from paceline.net.host import Libp2pTransport
from paceline.net.identity import Identity
from paceline.wire.errors import InvalidRequest
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Offer

ASKED = 4
"""Providers of one stretch that are asked for its offers: each tells of others, too."""

FETCH_S = 5.0


@dataclass(frozen=True, slots=True)
class DirectoryConfig:
    """`bootstrap`: multiaddrs of any members, each ending in ``/p2p/<peer id>``. Times in seconds.

    A node announces every `announce_s` an offer that lives for `lifetime_s` (see `offers.pace` for large swarms): a
    dead node is in no view longer than that, and two lost announcements are no gap.
    """

    bootstrap: tuple[str, ...] = ()
    lifetime_s: float = 12.0
    announce_s: float = 4.0
    publish_s: float = 300.0
    """Between two publications in Kademlia (about 150 requests each); contacts live nearly twice as long."""
    republish_s: float = 60.0
    """At the earliest so long after the last one, where a third of the members are others since."""
    tidy_s: float = 5.0
    search_again_s: float = 5.0
    """A model that nobody serves, or a stretch of layers, is searched in Kademlia at most this often."""
    crowd: int = stretches.CROWD
    """Members beyond which nodes are filed by stretches of layers in place of names."""
    membership: MembershipConfig = field(default_factory=MembershipConfig)


class KademliaDirectory:
    """`Directory` of one process. `transport.run()` must be entered before `run()`."""

    def __init__(
        self,
        transport: Libp2pTransport,
        identity: Identity,
        config: DirectoryConfig = DirectoryConfig(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises InvalidRequest where a bootstrap address is none."""
        self._transport = transport
        self._identity = identity
        self._config = config
        self._clock = clock
        bootstrap = parse_bootstrap(config.bootstrap)
        self._bootstrap = {it.peer: it for it in bootstrap}
        self._calls = StreamCalls(transport, self._answer)
        membership = replace(config.membership, bootstrap=bootstrap)
        self._membership = Membership(identity.peer, self._calls, membership, clock)
        self._kad: Kad | None = None
        self._own: Offer | None = None
        self._changed = trio.Event()
        self._published_to, self._published_at = 0, 0.0
        self._searched: dict[str, float] = {}

    def run(self) -> AbstractAsyncContextManager[None]:
        """Raises PeerUnavailable where bootstrap members were given and none answers within `join_timeout_s`."""
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        serves = is_direct(self._transport.address)
        kad_config = KadConfig(serves, contact_lifetime_s=1.9 * self._config.publish_s)
        async with self._calls.run(), self._membership.run():
            kad = Kad(self._transport.host, self._identity, kad_config, self._clock, self)
            await kad.calm()
            await kad.add_members()
            self._kad = kad
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_tidy, kad)
                    if self._transport.address.control:
                        nursery.start_soon(self._keep_published, kad)
                    yield
                    nursery.cancel_scope.cancel()
            finally:
                kad.close()

    async def announce(self, offer: Offer) -> None:
        """Returns at once; neighbours are told in the background, Kademlia where models or addresses changed. Who is
        reached through a relay only stops to be one of Kademlia's servers, and is one again when that has changed.

        Raises OfferRejected where no other peer could accept it, or its sequence is not after the previous one's.
        """
        self._membership.announce(offers.sign(self._identity, offer))
        previous, self._own = self._own, offer
        if previous is None or _published(previous) != _published(offer):
            self._changed.set()
        if self._kad is not None and (previous is None or previous.at != offer.at):
            await self._kad.serve(is_direct(offer.at))
        await trio.lowlevel.checkpoint()

    async def withdraw(self) -> None:
        """Nothing where nothing was announced."""
        last, self._own = self._own, None
        if last is not None:
            gone = offers.withdrawal(last, self._clock())
            await self._membership.withdraw(offers.sign(self._identity, gone))

    async def offers(self, model: str | None = None) -> Sequence[Offer]:
        """From the warm view, at once; a model that it does not know is searched, for a few seconds at most."""
        known = self._membership.live(model)
        if not known and model is not None and self._may_search(model):
            await self._search(model)
            known = self._membership.live(model)
        await trio.lowlevel.checkpoint()
        return known

    async def cover(self, revision: bytes, layers: int, missing: Sequence[int]) -> int:
        """Each stretch of layers has a key in Kademlia, whose providers are asked for offers of that stretch."""
        if self._kad is None or self.is_complete():
            await trio.lowlevel.checkpoint()
            return 0
        numbers = stretches.touched(layers, missing)
        asked = [number for number in numbers if self._may_search(stretches.text(revision, number))]
        news: list[int] = []

        async def ask(kad: Kad, number: int) -> None:
            part = stretches.span(layers, number)
            providers = await kad.find_providers(stretches.text(revision, number))
            random.shuffle(providers)
            with trio.move_on_after(FETCH_S):
                async with trio.open_nursery() as nursery:
                    for it in providers[:ASKED]:
                        nursery.start_soon(fetch, it, Want(revision, part.start, part.end))

        async def fetch(member: PeerAddress, want: Want) -> None:
            news.append(await self._membership.fetch(member, want))

        async with trio.open_nursery() as nursery:
            for number in asked:
                nursery.start_soon(ask, self._kad, number)
        return sum(news)

    async def find(self, peer: str) -> Offer | None:
        """One peer's live offer: from the view, or asked from the peer itself at the address that Kademlia has."""
        if (known := self._membership.book.find(peer, self._clock())) is None and self._kad is not None:
            at = await self._kad.find(peer)
            if at is not None:
                await self._membership.pull(at)
                known = self._membership.book.find(peer, self._clock())
        return known

    def statistics(self) -> dict[str, int]:
        """Counters of the view, the exchange, its streams and Kademlia."""
        streams = {f"exchange_{name}": count for name, count in sorted(self._calls.counts.items())}
        kad = self._kad.statistics() if self._kad is not None else {}
        return self._membership.statistics() | streams | kad

    def _answer(self, peer: str, request: bytes) -> bytes:
        return self._membership.answer(peer, request)

    # --- what Kademlia asks of the view (`kad.View`) ----------------------------------------------------------

    def belongs(self, peer: str) -> bool:
        """Whether Kademlia may ask the peer: it can be dialled, and has a live offer or is a bootstrap member that
        answers.
        """
        if (known := self._membership.book.find(peer, self._clock())) is not None:
            return is_direct(known.at)
        if not self.is_complete():
            return True
        return peer in self._bootstrap and self._membership.answers(peer)

    def everybody(self) -> list[PeerAddress]:
        """See Directory."""
        return [it for it in self._membership.members().values() if self.belongs(it.peer) and is_direct(it)]

    def is_complete(self) -> bool:
        """False where the view had to refuse newcomers."""
        return not self._membership.book.is_full

    # --- habits -------------------------------------------------------------------------------------------------

    def _may_search(self, model: str) -> bool:
        now = self._clock()
        self._searched = {it: then for it, then in self._searched.items() if now - then < self._config.search_again_s}
        if model in self._searched:
            return False
        self._searched[model] = now
        return True

    async def _search(self, model: str) -> None:
        """Ask whoever provides the model, by Kademlia's account, for what the view lacks."""
        if self._kad is None:
            return
        providers = await self._kad.find_providers(model)
        with trio.move_on_after(self._config.search_again_s):
            async with trio.open_nursery() as nursery:
                for it in providers:
                    nursery.start_soon(self._membership.pull, it)

    async def _keep_published(self, kad: Kad) -> None:
        """A server's records in Kademlia. The first go out a little later, when the exchange has made the connections
        (both at once would dial every member twice), and not everybody's at once.
        """
        await trio.sleep(self._config.tidy_s * random.uniform(1.0, 3.0))
        while True:
            with trio.move_on_after(self._config.publish_s * random.uniform(0.8, 1.0)):
                await self._changed.wait()
            self._changed = trio.Event()
            self._published_to, self._published_at = len(self._membership.members()), self._clock()
            own = self._own
            if own is not None and not await kad.publish(own.at, self._keys(own)):
                self._changed.set()
            await trio.sleep(self._config.tidy_s)

    def _keys(self, own: Offer) -> tuple[str, ...]:
        crowd = len(self._membership.members()) >= self._config.crowd
        return stretches.filed_under(own.services, crowd=crowd)

    def _is_stale(self) -> bool:
        """Whether a key's closest members have become others. Bounded in time, too: where a machine is so busy that its
        view flickers, publishing at each flicker would keep it busy.
        """
        change = abs(len(self._membership.members()) - self._published_to)
        due = self._clock() - self._published_at >= self._config.republish_s
        return due and change > 1 + self._published_to // 3

    async def _keep_tidy(self, kad: Kad) -> None:
        while True:
            kad.tidy()
            await kad.add_members()
            if self._is_stale():
                self._changed.set()
            await self._calls.trim()
            await trio.sleep(self._config.tidy_s)


def parse_bootstrap(addresses: Iterable[str]) -> tuple[PeerAddress, ...]:
    """``/ip4/…/tcp/…/p2p/<peer id>`` → addresses per peer, in order. Raises InvalidRequest.

    ``@FILE`` stands for the addresses in a file that a member wrote when it was ready (``{"bootstrap": […]}``).
    """
    control: dict[str, tuple[str, ...]] = {}
    for text in written_out(addresses):
        address, found, peer = text.rpartition("/p2p/")
        if not found or not address.startswith("/") or not peer or "/" in peer:
            raise InvalidRequest(
                f"{text!r} is not a member's address",
                cure="it looks like /ip4/203.0.113.5/tcp/4001/p2p/12D3KooW…: `paceline node` prints its own",
            )
        control[peer] = (*control.get(peer, ()), address)
    return tuple(PeerAddress(peer, where) for peer, where in control.items())


def written_out(addresses: Iterable[str]) -> list[str]:
    """``@FILE`` replaced by the addresses in that file. Raises InvalidRequest."""
    return [each for given in addresses for each in (_written(given[1:]) if given.startswith("@") else [given])]


def _written(file: str) -> list[str]:
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))["bootstrap"]
        return [str(address) for address in found]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidRequest(
            f"{file} does not say where members are: {error!r}", cure="name the ready file of a member that runs"
        ) from error


def _published(offer: Offer) -> tuple[PeerAddress, tuple[str, ...]]:
    """What Kademlia's records say of a node, in the finest form."""
    return offer.at, stretches.filed_under(offer.services, crowd=True)
