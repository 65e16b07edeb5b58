"""The one user of py-libp2p's Kademlia: contacts and provider records in, whom to ask out.

Knows KadDHT and how it must be treated (each way round it is marked). Refuses to know offers and views: it never says
who is alive, only who might know.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import libp2p.kad_dht.provider_store as provider_store
import trio
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.records.validator import NamespacedValidator
from multiaddr import Multiaddr

from paceline.dht import records
from paceline.dht.records import ContactValidator
from paceline.net.hardening import DHT_PROTOCOL
from paceline.net.identity import Identity
from paceline.wire.errors import OfferRejected
from paceline.wire.messages import PeerAddress

PROVIDER_LIFETIME_S = 900.0
"""The library keeps provider records for 48 h and refuses new ones beyond 20 a key: a model's list would fill with the
dead. Process-wide."""

ADDRESS_TTL_S = 3600

MAX_ANSWERS = 100
"""The library counts one provider again for each server that names it, up to 20 from each, and stops at this many."""

QUORUM = 2
"""Servers that must hold a contact before the search for it ends early; without, everybody in reach is asked."""


REPLICAS = 10
"""Members that store a record: with 30 % of a swarm gone at once, all of a record's are gone once in 170,000."""

PING_S = 15.0
"""Between the library's health pings on one connection; the exchange has a deadline of its own on each call."""

PING_TIMEOUT_S = 10.0


class View(Protocol):
    """Who is a member, as far as is known now."""

    def belongs(self, peer: str) -> bool:
        """Whether the peer may stay in the routing table."""
        ...

    def everybody(self) -> list[PeerAddress]:
        """Members that can be called."""
        ...

    def is_complete(self) -> bool:
        """Whether `everybody` leaves nobody out for want of room."""
        ...


@dataclass(frozen=True, slots=True)
class KadConfig:
    """`serve`: take part as a server; clients only ask. Times in seconds."""

    serve: bool
    contact_lifetime_s: float = 570.0
    publish_timeout_s: float = 20.0
    search_timeout_s: float = 5.0


class Kad:
    """Answers as a server from the start, where told to; asks whenever asked.

    The library's own maintenance service is not run: it looks up random keys to fill a table that the view fills for
    nothing (150 requests a node at its start, in a swarm of 31), and republishes every 22 h. `tidy` is the upkeep.

    `view`: while it holds everybody, a key's closest members are read off it, which is one hop instead of a search
    (Gupta, Liskov and Rodrigues, "One hop lookups for peer-to-peer overlays", 2003), and the ten closest store it
    instead of twenty. The iterative search is left for views that are small or full.
    """

    def __init__(
        self,
        host: Any,
        identity: Identity,
        config: KadConfig,
        clock: Callable[[], float],
        view: View,
    ) -> None:
        self._host = host
        self._identity = identity
        self._config = config
        self._clock = clock
        self._view = view
        self._validator = ContactValidator(clock)
        self._counts: Counter[str] = Counter()
        self._provided: frozenset[str] = frozenset()
        provider_store.PROVIDER_RECORD_EXPIRATION_INTERVAL = PROVIDER_LIFETIME_S
        logging.getLogger("libp2p.kad_dht").setLevel(logging.ERROR)  # every clean end of a stream is a warning there
        validator = NamespacedValidator({records.NAMESPACE: self._validator}, strict_validation=True)
        self._dht: Any = _MembersOnly(
            host,
            DHTMode.SERVER if config.serve else DHTMode.CLIENT,
            validator=validator,
            validator_changed=True,  # or the library adds its own namespaces, open to anybody
            strict_validation=True,
        )
        self._dht.view = view
        routing = _FromTheView(host, self._dht.routing_table)
        routing.view, routing.remember = view, self._remember
        self._dht.peer_routing = self._dht.provider_store.peer_routing = routing

    async def serve(self, on: bool) -> None:
        """Answer others from now on, or no more; nothing where it is so already."""
        mode = DHTMode.SERVER if on else DHTMode.CLIENT
        if mode is not self._dht.mode:
            await self._dht.switch_mode(mode)
            await self.add_members()  # the library empties its table

    def close(self) -> None:
        """Serve no more."""
        if self._serves:
            self._host.remove_stream_handler(DHT_PROTOCOL)

    @property
    def _serves(self) -> bool:
        return bool(self._dht.mode is DHTMode.SERVER)

    async def calm(self) -> None:
        """Stop the library's auto-connector, which dials whoever the peerstore knows, up to 200, the dead included; and
        ping less often than every few seconds: with 13 neighbours that was 60 % of what a node at rest cost. A busy
        machine that answers late is not cut off either: new connections would make it busier.
        """
        network = self._host.get_network()
        await network.auto_connector.stop()
        pings = network.connection_config
        pings.health_check_interval = max(PING_S, pings.health_check_interval)
        pings.ping_timeout = max(PING_TIMEOUT_S, pings.ping_timeout)

    async def add_members(self) -> None:
        """Everybody in the view, into the routing table."""
        for it in self._view.everybody():
            peer = ID.from_string(it.peer)
            if self._view.belongs(it.peer) and not self._dht.routing_table.peer_in_table(peer):
                self._remember(it)
                await self._dht.add_peer(peer)

    def tidy(self) -> None:
        """Drop from the table who is no member, and from the stores what has expired."""
        for peer in self._dht.routing_table.get_peer_ids():
            if not self._view.belongs(peer.to_string()):
                self._dht.routing_table.remove_peer(peer)
                self._counts["pruned"] += 1
        self._dht.provider_store.cleanup_expired()
        store = self._dht.value_store
        for key in list(store.store):
            if not self._stands(store.store[key][0].value):
                store.remove(key)

    async def publish(self, at: PeerAddress, models: Collection[str]) -> bool:
        """Put the own contact, and provide the keys of `models` (names, revisions in hex, stretches of layers). False
        where it did not end in time.
        """
        now = self._clock()
        value = records.sign_contact(self._identity, at, now, self._config.contact_lifetime_s)
        with trio.move_on_after(self._config.publish_timeout_s):
            await self._dht.put_value(records.contact_key(at.peer), value)
            for model in sorted(models):
                await self._dht.provide(records.model_key(model))
            for model in self._provided - frozenset(models):
                self._dht.provider_store.providing_keys.discard(records.model_multihash(model))
            self._provided = frozenset(models)
            self._counts["published"] += 1
            return True
        return False

    async def find(self, peer: str) -> PeerAddress | None:
        """Where a peer said it can be reached."""
        key = records.contact_key(peer)
        self._counts["searches"] += 1
        if not self._serves:
            self._dht.value_store.remove(key.encode())  # the library never asks again for what it once got
        with trio.move_on_after(self._config.search_timeout_s):
            value = await self._dht.get_value(key, quorum=QUORUM)
            try:
                return records.verify_contact(value, self._clock(), key=key).at if value else None
            except OfferRejected:
                return None
        return None

    async def find_providers(self, model: str) -> list[PeerAddress]:
        """Who says it serves a model (a name, a revision in hex, a stretch of its layers), alive or not."""
        self._counts["searches"] += 1
        if not self._serves:
            self._dht.provider_store.providers.pop(records.model_multihash(model), None)  # as above
        with trio.move_on_after(self._config.search_timeout_s):
            found = await self._dht.find_providers(records.model_key(model), MAX_ANSWERS)
            addresses = {it.peer: it for it in map(_address, found) if it.peer != self._identity.peer}
            return list(addresses.values())
        return []

    def statistics(self) -> dict[str, int]:
        """Counts since the start, and sizes now."""
        rejected = {f"kad_rejected_{reason}": count for reason, count in sorted(self._validator.rejected.items())}
        counts = {f"kad_{name}": count for name, count in sorted(self._counts.items())}
        sizes = {"kad_table": self._dht.get_routing_table_size(), "kad_values": self._dht.get_value_store_size()}
        return counts | rejected | sizes

    def _remember(self, it: PeerAddress) -> None:
        addresses = [parsed for text in it.control if (parsed := _multiaddr(text)) is not None]
        self._host.get_peerstore().add_addrs(ID.from_string(it.peer), addresses, ADDRESS_TTL_S)

    def _stands(self, value: bytes) -> bool:
        try:
            records.verify_contact(value, self._clock())
        except OfferRejected:
            return False
        return True


class _MembersOnly(KadDHT):  # type: ignore[misc]
    """The library takes whoever asks into its routing table, clients too, and hands them on to others."""

    view: View

    async def add_peer(self, peer_id: Any, *, skip_server_mode_check: bool = False) -> bool:
        if not self.view.belongs(peer_id.to_string()):
            return False
        added: bool = await super().add_peer(peer_id, skip_server_mode_check=skip_server_mode_check)
        return added


class _FromTheView(PeerRouting):  # type: ignore[misc]
    """The members closest to a key, without asking anybody, where the view knows them all."""

    view: View
    remember: Callable[[PeerAddress], None]

    async def find_closest_peers_network(self, target_key: bytes, count: int = 20) -> list[Any]:
        members = {ID.from_string(it.peer): it for it in self.view.everybody()}
        if len(members) < REPLICAS or not self.view.is_complete():
            found: list[Any] = await super().find_closest_peers_network(target_key, count)
            return found
        closest: list[Any] = sort_peer_ids_by_distance(target_key, list(members))[:REPLICAS]
        for peer in closest:
            self.remember(members[peer])
        await trio.lowlevel.checkpoint()
        return closest


def _multiaddr(text: str) -> Multiaddr | None:
    """A signed offer may still name an address that is none."""
    try:
        return Multiaddr(text)
    except (ValueError, LookupError):
        return None


def _address(info: Any) -> PeerAddress:
    return PeerAddress(info.peer_id.to_string(), tuple(str(it) for it in info.addrs)[:16])
