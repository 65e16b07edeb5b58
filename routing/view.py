"""What a client believes about the swarm at one moment: the live offers of one model, and how far peers are.

Knows verified offers and measured round trips; `now` is an argument. Refuses to verify signatures (dht does), to
measure (net does), or to choose a ring (ring does).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paceline.routing.coordinates import Coordinate, located, usable
from paceline.routing.latency import Floats, Ints, LatencyMap, latency_map
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Measured, Offer, Service

Bools = NDArray[np.bool_]

GUESS_RTT_S = 0.04
"""Round trip of two peers about whom nothing is known: within a continent."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well the live offers cover one revision. `replicas[k]`: serving services that hold layer k."""

    revision: bytes
    layers: int
    replicas: tuple[int, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """Layers that nobody serves."""
        return tuple(layer for layer, count in enumerate(self.replicas) if count == 0)

    @property
    def complete(self) -> bool:
        return not self.missing


@dataclass(frozen=True, eq=False)
class ServiceTable:
    """The services of one revision as columns of length n, row i being ``services[i]`` at ``addresses[i]``.

    `peer` indexes the view's peers; `serving` is false for joining and draining nodes, `live` for draining ones. Times
    in seconds, over the whole span, as offered.
    """

    layers: int
    services: tuple[Service, ...]
    addresses: tuple[PeerAddress, ...]
    peer: Ints
    serving: Bools
    live: Bools

    def __len__(self) -> int:
        return len(self.services)

    def replicas(self, chosen: Bools) -> Ints:
        """How many of the `chosen` rows hold each layer: length `layers`."""
        steps = np.zeros(self.layers + 1, dtype=np.int64)
        np.add.at(steps, self.start[chosen], 1)
        np.add.at(steps, self.end[chosen], -1)
        return np.cumsum(steps)[: self.layers]

    @cached_property
    def start(self) -> Ints:
        return self._ints("start")

    @cached_property
    def end(self) -> Ints:
        return self._ints("end")

    @cached_property
    def kv_free(self) -> Ints:
        return self._ints("kv_free")

    @cached_property
    def max_context(self) -> Ints:
        return self._ints("max_context")

    @cached_property
    def sessions(self) -> Ints:
        return self._ints("sessions")

    @cached_property
    def hidden(self) -> Ints:
        return self._ints("hidden")

    @cached_property
    def numerics(self) -> NDArray[np.str_]:
        return np.array([service.numerics for service in self.services], dtype=np.str_)

    @cached_property
    def classes(self) -> dict[str, Bools]:
        """The rows of each numerics class, by its name."""
        return {str(name): np.asarray(self.numerics == name) for name in np.unique(self.numerics)}

    @cached_property
    def measured(self) -> Floats:
        """n × 9: the columns of `paceline.wire.offers.Measured`, in its order."""
        names = Measured.__struct_fields__
        rows = [[getattr(service.measured, name) for name in names] for service in self.services]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))

    def _ints(self, name: str) -> Ints:
        return np.array([getattr(service, name) for service in self.services], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class SwarmView:
    """The live offers of `model`, and latencies. Build with :func:`swarm_view`; immutable, so plans can be compared."""

    model: str
    now: float
    offers: tuple[Offer, ...]
    latency: LatencyMap
    client_s: Floats
    """One-way seconds from the client to each offer's peer."""

    guess_rtt_s: float = GUESS_RTT_S
    """Round trip to a peer that is not in the view."""

    _tables: dict[bytes, ServiceTable] = field(default_factory=dict, repr=False)

    @cached_property
    def peer_index(self) -> dict[str, int]:
        """Peer id → row of `offers`, of `latency` and of `client_s`."""
        return {offer.peer: at for at, offer in enumerate(self.offers)}

    @cached_property
    def revisions(self) -> tuple[bytes, ...]:
        """Every revision of the model that some live offer names, in byte order."""
        named = {service.revision for offer in self.offers for service in offer.services if service.model == self.model}
        return tuple(sorted(named))

    def table(self, revision: bytes) -> ServiceTable:
        """The services of one revision (cached); empty where nobody offers it."""
        if revision not in self._tables:
            self._tables[revision] = _table(self, revision)
        return self._tables[revision]

    def with_peers(self, addresses: Iterable[PeerAddress]) -> SwarmView:
        """This view, and peers that have no live offer but are known to live (survivors of a ring): they serve nothing
        new, and are as far from everybody as strangers are. The same view where there are none."""
        strangers = [at for at in addresses if at.peer not in self.peer_index]
        if not strangers:
            return self
        silent = tuple(Offer(at, 0, self.now, self.now, (), "draining") for at in strangers)
        return SwarmView(
            self.model,
            self.now,
            self.offers + silent,
            self.latency.with_strangers(len(strangers), self.guess_rtt_s),
            np.concatenate([self.client_s, np.full(len(strangers), self.guess_rtt_s / 2.0)]),
            self.guess_rtt_s,
            self._tables,
        )

    def coverage(self, revision: bytes) -> Coverage:
        """Serving replicas per layer of one revision."""
        table = self.table(revision)
        return Coverage(revision, table.layers, tuple(int(count) for count in table.replicas(table.serving)))

    def complete(self) -> tuple[Coverage, ...]:
        """Revisions with every layer covered, best replicated first."""
        whole = [coverage for coverage in map(self.coverage, self.revisions) if coverage.complete]
        return tuple(sorted(whole, key=lambda coverage: (-min(coverage.replicas), coverage.revision)))

    def newest_complete(self, sequence: Mapping[bytes, int]) -> bytes | None:
        """The complete revision with the highest manifest sequence number, or None.

        `sequence` comes from verified manifests: offers alone do not say which revision is newer. Revisions that are
        not in it are older than every one that is.
        """
        ranked = [
            (sequence.get(coverage.revision, -1), min(coverage.replicas), coverage.revision)
            for coverage in self.complete()
        ]
        return max(ranked)[2] if ranked else None


def swarm_view(
    model: str,
    offers: Iterable[Offer],
    *,
    now: float,
    client_rtts: Mapping[str, float] | None = None,
    coordinates: Mapping[str, Coordinate] | None = None,
    client_coordinate: Coordinate | None = None,
    guess_rtt_s: float = GUESS_RTT_S,
) -> SwarmView:
    """Build a view from verified offers. `now` in unix seconds, round trips in seconds.

    Expired offers are left out; of several offers by one peer the highest sequence counts. `client_rtts`: what the
    client itself measured. Node ↔ node round trips come from the offers; `coordinates` (None: the offers' own) fill the
    gaps, and `guess_rtt_s` what is left. `client_coordinate` None: worked out from `client_rtts`.
    """
    newest: dict[str, Offer] = {}
    for offer in offers:
        known = newest.get(offer.peer)
        if known is None or offer.sequence > known.sequence:
            newest[offer.peer] = offer
    live = tuple(
        offer
        for offer in newest.values()
        if offer.expires_at > now and any(service.model == model for service in offer.services)
    )
    places = _places(live) if coordinates is None else coordinates
    if client_coordinate is None and client_rtts:
        samples = [(places[peer], rtt_s) for peer, rtt_s in client_rtts.items() if peer in places]
        client_coordinate = located(samples) if len(samples) >= 3 else None
    rtts = ((offer.peer, near, rtt_s) for offer in live for near, rtt_s in offer.rtts)
    latency = latency_map([offer.peer for offer in live], rtts, places, guess_rtt_s)
    client_s = _client_seconds(live, client_rtts or {}, places, client_coordinate, guess_rtt_s)
    return SwarmView(model, now, live, latency, client_s, guess_rtt_s)


def _places(offers: tuple[Offer, ...]) -> dict[str, Coordinate]:
    """What the offers say of themselves, as far as it can be true."""
    claimed = {offer.peer: Coordinate.of(offer.place) for offer in offers if offer.place is not None}
    return {peer: place for peer, place in claimed.items() if usable(place)}


def _client_seconds(
    offers: tuple[Offer, ...],
    rtts: Mapping[str, float],
    places: Mapping[str, Coordinate],
    own: Coordinate | None,
    guess_rtt_s: float,
) -> Floats:
    def rtt(peer: str) -> float:
        if peer in rtts:
            return rtts[peer]
        if own is not None and peer in places:
            return own.rtt_to(places[peer])
        return guess_rtt_s

    return np.array([rtt(offer.peer) / 2.0 for offer in offers], dtype=np.float64)


def _table(view: SwarmView, revision: bytes) -> ServiceTable:
    rows = [
        (at, offer, service)
        for at, offer in enumerate(view.offers)
        for service in offer.services
        if service.model == view.model
        and service.revision == revision
        and service.start < service.end <= service.layers
    ]
    layers = _agreed_layers([service.layers for _, _, service in rows])
    rows = [row for row in rows if row[2].layers == layers]
    return ServiceTable(
        layers=layers,
        services=tuple(service for _, _, service in rows),
        addresses=tuple(offer.at for _, offer, _ in rows),
        peer=np.array([at for at, _, _ in rows], dtype=np.int64),
        serving=np.array([offer.state == "serving" for _, offer, _ in rows], dtype=bool),
        live=np.array([offer.state != "draining" for _, offer, _ in rows], dtype=bool),
    )


def _agreed_layers(claims: list[int]) -> int:
    """A revision has one layer count; a liar's different claim is outvoted rather than believed."""
    return max(sorted(set(claims)), key=claims.count, default=0)
