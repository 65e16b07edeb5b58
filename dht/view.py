"""The view of the swarm: the newest believable offer of every peer, and what another view lacks of it.

Pure: `now` is an argument (unix seconds), nothing is sent. Knows which offer stands; refuses to know who brought it.
Merging views is commutative, associative and idempotent while nothing is refused for room, so offers may arrive in any
order, by any way, any number of times.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paceline.dht import offers
from paceline.dht.stretches import Want
from paceline.wire import limits
from paceline.wire.errors import Malformed, OfferRejected
from paceline.wire.offers import Offer, SignedOffer

CAPACITY = 4096
"""Peers in one view unless told otherwise (about 3 KB each, decoded)."""

_ENTRY = struct.Struct(">8sQ")
DIGEST_ENTRY_BYTES = _ENTRY.size
"""A digest names each peer by 8 bytes of its id's SHA-256, and the sequence of its newest known offer."""


@dataclass(frozen=True, slots=True)
class _Entry:
    signed: SignedOffer
    offer: Offer
    tag: bytes

    @property
    def rank(self) -> tuple[int, bytes]:
        """Total order of one peer's offers. The body breaks the tie of a signer that used a sequence twice."""
        return self.offer.sequence, self.signed.body


@dataclass(frozen=True, slots=True)
class _Floor:
    """Nothing ranked at or below this is taken from the peer again until then."""

    rank: tuple[int, bytes]
    until: float


class OfferBook:
    """Bounded store of verified offers, newest per peer.

    Room: at most `capacity` peers. A newcomer to a full book is refused (counted as "full") rather than an old one
    evicted: whoever floods the swarm with identities cannot push known nodes out, and frees the room when his stop.
    Memory of the past: a peer's newest sequence is remembered until any older offer of an honest signer has expired, so
    neither a withdrawn nor an expired node comes back by an older offer.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.counts: Counter[str] = Counter()
        self._entries: dict[str, _Entry] = {}
        self._floors: dict[str, _Floor] = {}

    def accept(self, signed: SignedOffer, now: float) -> bool:
        """Take an offer in, if it is newer than what is known. True where the view changed by it.

        Raises OfferRejected where it may not be believed; the signature is only checked where it would change the view.
        """
        try:
            offer = offers.peek(signed)
            rank = offer.sequence, signed.body
            if (floor := self._floors.get(offer.peer)) and now < floor.until and rank <= floor.rank:
                self.counts["known" if rank == floor.rank else "stale"] += 1
                return False
            offers.verify(signed, now)
        except OfferRejected as error:
            self.counts[f"rejected_{error.reason}"] += 1
            raise
        if not self._has_room(offer.peer, now):
            self.counts["full"] += 1
            return False
        self._entries[offer.peer] = _Entry(signed, offer, peer_tag(offer.peer))
        self._floors[offer.peer] = _Floor(rank, offer.issued_at + limits.MAX_OFFER_LIFETIME_S + offers.MAX_SKEW_S)
        self.counts["accepted"] += 1
        return True

    def merge(self, arrived: Iterable[SignedOffer], now: float) -> list[SignedOffer]:
        """Accept many; what is refused is counted. Returns those that changed the view: what is worth passing on."""
        news = []
        for signed in arrived:
            try:
                if self.accept(signed, now):
                    news.append(signed)
            except OfferRejected:
                continue
        return news

    def live(self, now: float, model: str | None = None) -> list[Offer]:
        """Offers that stand at `now` and serve `model` (name or revision in hex); None: all but the withdrawn."""
        return [
            entry.offer
            for entry in self._entries.values()
            if entry.offer.expires_at > now
            and not offers.is_withdrawal(entry.offer)
            and offers.serves(entry.offer, model)
        ]

    def find(self, peer: str, now: float) -> Offer | None:
        """The standing offer of one peer."""
        entry = self._entries.get(peer)
        if entry is None or entry.offer.expires_at <= now or offers.is_withdrawal(entry.offer):
            return None
        return entry.offer

    @property
    def lies(self) -> int:
        """Offers refused that no honest member passes on, since it would have refused them itself."""
        return sum(
            self.counts[f"rejected_{reason}"] for reason in ("forged", "malformed", "oversized", "too_long_lived")
        )

    @property
    def is_full(self) -> bool:
        """True where newcomers are refused, so that absence from the view proves nothing."""
        return len(self._entries) >= self.capacity

    def expire(self, now: float) -> list[Offer]:
        """Forget what has expired; returns the last offers of the peers that left without a word."""
        gone = [entry.offer for entry in self._entries.values() if entry.offer.expires_at <= now]
        for offer in gone:
            del self._entries[offer.peer]
        for peer in [peer for peer, floor in self._floors.items() if floor.until <= now]:
            del self._floors[peer]
        self._bound_floors()
        return [offer for offer in gone if not offers.is_withdrawal(offer)]

    def digest(self, now: float, want: Want | None = None) -> bytes:
        """What this view knows (of `want`), for another one to compare: 16 bytes per peer, withdrawn ones included."""
        return b"".join(
            _ENTRY.pack(entry.tag, entry.offer.sequence)
            for entry in self._standing(now)
            if want is None or want.overlap(entry.offer)
        )

    def wanted(self, digest: bytes, now: float, want: Want, most: int) -> list[SignedOffer]:
        """At most `most` offers that a view with `digest` lacks, those that hold most of the wanted layers first, of
        equals the longest-lived. Raises Malformed.
        """
        known = read_digest(digest)
        found = [
            (want.overlap(entry.offer), entry.offer.expires_at, entry)
            for entry in self._standing(now)
            if entry.offer.sequence > known.get(entry.tag, -1) and want.overlap(entry.offer)
        ]
        found.sort(key=lambda it: it[:2], reverse=True)
        return [entry.signed for _, _, entry in found[:most]]

    def lacking(self, digest: bytes, now: float, max_bytes: int) -> tuple[list[SignedOffer], bool]:
        """What a view with `digest` lacks of this one, longest-lived first, within `max_bytes`; and whether there is
        more. At least one offer where there is any. Raises Malformed.
        """
        known = read_digest(digest)
        news = [entry for entry in self._standing(now) if entry.offer.sequence > known.get(entry.tag, -1)]
        news.sort(key=lambda entry: -entry.offer.expires_at)
        chosen: list[SignedOffer] = []
        room = max_bytes
        for entry in news:
            room -= len(entry.signed.body) + 72
            if room < 0 and chosen:
                return chosen, True
            chosen.append(entry.signed)
        return chosen, False

    def statistics(self, now: float) -> dict[str, int]:
        """Counts since the start, and `known`: peers in the view now."""
        counts = {f"offers_{name}": count for name, count in sorted(self.counts.items())}
        return {"peers": len(self.live(now)), **counts}

    def _standing(self, now: float) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.offer.expires_at > now]

    def _has_room(self, peer: str, now: float) -> bool:
        if peer in self._entries or len(self._entries) < self.capacity:
            return True
        self.expire(now)
        return len(self._entries) < self.capacity

    def _bound_floors(self) -> None:
        """Where identities come and go faster than they are forgotten, forget those first that end first."""
        surplus = len(self._floors) - 4 * self.capacity
        if surplus > 0:
            for peer in sorted(self._floors, key=lambda peer: self._floors[peer].until)[:surplus]:
                del self._floors[peer]


def peer_tag(peer: str) -> bytes:
    """8 bytes that stand for a peer in a digest."""
    return hashlib.sha256(peer.encode()).digest()[:8]


def read_digest(digest: bytes) -> Mapping[bytes, int]:
    """Tag → sequence. Raises Malformed."""
    if len(digest) % DIGEST_ENTRY_BYTES:
        raise Malformed(f"digest of {len(digest)} bytes is not a number of entries")
    return dict(_ENTRY.iter_unpack(digest))
