"""Offers as statements of a peer: signed, sequenced, expiring.

Knows when an offer may be believed. Refuses to know where it came from, and what time it is: `now` is an argument, in
unix seconds of the reader's own clock.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from paceline.net import identity as keys
from paceline.net.identity import Identity
from paceline.wire import limits
from paceline.wire.codec import Buffer, decode_header, encode_header
from paceline.wire.errors import Malformed, OfferRejected
from paceline.wire.ids import PeerId
from paceline.wire.offers import Offer, Service, SignedOffer

Reason = Literal["malformed", "oversized", "wrong_peer", "forged", "from_future", "too_long_lived", "expired"]

MAX_SKEW_S = 3.0
"""How far ahead of the reader's clock an offer may have been issued. Expiry has no tolerance: so a dead node is seen
for at most its offer's lifetime plus this, whatever its clock said (12 s + 3 s with the default lifetime)."""

MAX_SIGNED_BYTES = limits.MAX_OFFER_BYTES + 128
"""An encoded SignedOffer: the body, 64 bytes of signature and MessagePack's own few."""

MAX_OFFERS_PER_S = 250.0
"""Offers of a whole swarm in one second, when all announce at `pace` (about 0.2 ms each to check)."""

_ROUNDING_S = 1e-3
"""Sums of unix seconds are exact to a quarter of a microsecond."""

_DOMAIN = b"paceline/offer/1\x00"
"""Prefixed to what is signed, so that a signature made for anything else never passes for an offer."""


class Lasting(Protocol):
    """What has a validity in time."""

    @property
    def issued_at(self) -> float: ...
    @property
    def expires_at(self) -> float: ...


def sign(identity: Identity, offer: Offer) -> SignedOffer:
    """The offer as its peer's statement. Raises OfferRejected where no reader could accept it, whatever the time."""
    if offer.peer != identity.peer:
        raise _rejected("wrong_peer", f"{identity.peer} cannot sign for another peer", offer.peer)
    body = encode_header(offer)
    if len(body) > limits.MAX_OFFER_BYTES:
        raise _rejected("oversized", f"offer of {len(body)} bytes, {limits.MAX_OFFER_BYTES} allowed", offer.peer)
    _check_shape(_parse(body))
    return SignedOffer(body=body, signature=identity.sign(_DOMAIN + body))


def verify(signed: SignedOffer, now: float, *, peer: str | None = None) -> Offer:
    """The offer inside, if it may be believed at `now` (and is `peer`'s, where given). Raises OfferRejected."""
    offer = peek(signed)
    if peer is not None and offer.peer != peer:
        raise _rejected("wrong_peer", f"offer of {offer.peer} filed under another peer", peer)
    check_times(offer, now, limits.MAX_OFFER_LIFETIME_S, offer.peer)
    if not keys.verify(PeerId(offer.peer), _DOMAIN + signed.body, signed.signature):
        raise _rejected("forged", "offer is not signed by the peer it names", offer.peer)
    return offer


def peek(signed: SignedOffer) -> Offer:
    """The offer inside, well formed but neither authentic nor timely yet. Raises OfferRejected."""
    if len(signed.body) > limits.MAX_OFFER_BYTES:
        raise _rejected("oversized", f"offer of {len(signed.body)} bytes, {limits.MAX_OFFER_BYTES} allowed")
    offer = _parse(signed.body)
    _check_shape(offer)
    return offer


def check_times(item: Lasting, now: float, max_lifetime_s: float, peer: str) -> None:
    """Raise OfferRejected unless `item` is valid at `now` and claims at most `max_lifetime_s`."""
    if item.expires_at <= item.issued_at:
        raise _rejected("malformed", "offer expires before it was issued", peer)
    if item.expires_at - item.issued_at > max_lifetime_s + _ROUNDING_S:
        lifetime = item.expires_at - item.issued_at
        raise _rejected("too_long_lived", f"offer claims {lifetime:.0f} s, {max_lifetime_s:.0f} s allowed", peer)
    if item.expires_at <= now:
        raise _rejected("expired", f"offer expired {now - item.expires_at:.1f} s ago", peer)
    if item.issued_at > now + MAX_SKEW_S:
        raise _rejected("from_future", f"offer issued {item.issued_at - now:.1f} s ahead of this clock", peer)


def newer(a: Offer, b: Offer) -> bool:
    """True where `a` supersedes `b`: a greater sequence, nothing else."""
    return a.sequence > b.sequence


def stamp(offer: Offer, now: float, lifetime_s: float, *, after: int = 0) -> Offer:
    """`offer` issued at `now` for `lifetime_s`, with a sequence greater than `after` (the node's previous one).

    The sequence is unix milliseconds at least, so a node that restarts without memory still supersedes itself.
    """
    sequence = max(after + 1, int(now * 1000))
    return msgspec.structs.replace(offer, sequence=sequence, issued_at=now, expires_at=now + lifetime_s)


def pace(peers: int, announce_s: float) -> tuple[float, float]:
    """``(announce_s, lifetime_s)`` for a swarm of `peers`: three announcements per lifetime, as often as asked while
    every member thereby checks at most MAX_OFFERS_PER_S; beyond, slower, so that the work of a member stays bounded.
    """
    announce_s = max(announce_s, peers / MAX_OFFERS_PER_S)
    return announce_s, min(3 * announce_s, limits.MAX_OFFER_LIFETIME_S)


def withdrawal(last: Offer, now: float) -> Offer:
    """The statement that supersedes `last` and says the peer is gone.

    It lives as long as `last` would have, so that no copy of `last` can come back when it has been forgotten.
    """
    lifetime_s = max(1.0, last.expires_at - now)
    gone = msgspec.structs.replace(last, services=(), rtts=(), state="draining")
    return stamp(gone, now, min(lifetime_s, limits.MAX_OFFER_LIFETIME_S), after=last.sequence)


def is_withdrawal(offer: Offer) -> bool:
    """True where the peer says it is gone: draining, and nothing served."""
    return offer.state == "draining" and not offer.services


def serves(offer: Offer, model: str | None) -> bool:
    """Whether the offer has a service of `model`: its name, or its revision in hex. None: any service, or none."""
    return model is None or any(model in (it.model, it.revision.hex()) for it in offer.services)


def encode(signed: SignedOffer) -> bytes:
    """For the wire and the DHT: at most MAX_SIGNED_BYTES."""
    return encode_header(signed)


def decode(data: Buffer) -> SignedOffer:
    """The inverse of `encode`. Raises OfferRejected for anything else."""
    if len(data) > MAX_SIGNED_BYTES:
        raise _rejected("oversized", f"record of {len(data)} bytes, {MAX_SIGNED_BYTES} allowed")
    try:
        signed: SignedOffer = decode_header(data, SignedOffer)
    except Malformed as error:
        raise _rejected("malformed", f"not a signed offer: {error.message}") from error
    return signed


def _parse(body: bytes) -> Offer:
    try:
        offer: Offer = decode_header(body, Offer)
    except Malformed as error:
        raise _rejected("malformed", f"not an offer: {error.message}") from error
    return offer


def _check_shape(offer: Offer) -> None:
    """What the record's types cannot say."""
    for service in offer.services:
        if not _whole(service):
            span = f"{service.start}:{service.end}"
            raise _rejected("malformed", f"service of layers {span} of {service.layers}", offer.peer)


def _whole(service: Service) -> bool:
    return 0 <= service.start < service.end <= service.layers


def _rejected(reason: Reason, message: str, peer: str = "") -> OfferRejected:
    return OfferRejected(message, reason=reason, peer=peer)
