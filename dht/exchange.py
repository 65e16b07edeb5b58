"""The exchange protocol, `/paceline/offers/1`: one request, one answer, and a view is up to date.

A request carries a digest of what the asker knows and the offers it wants known; the answer carries what the asker
lacks. Pure: bytes in, bytes out. Knows the messages, their bounds and who is worth talking to; refuses to know streams
(dht/streams.py) and when to talk (dht/membership.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from paceline.dht.stretches import Want
from paceline.dht.view import CAPACITY, DIGEST_ENTRY_BYTES, OfferBook
from paceline.net.metering import Meter
from paceline.wire import limits
from paceline.wire.codec import Buffer, decode_header, encode_header
from paceline.wire.errors import Malformed
from paceline.wire.offers import SignedOffer, UnixSeconds

PROTOCOL = "/paceline/offers/1"

MAX_DIGEST_BYTES = 4 * CAPACITY * DIGEST_ENTRY_BYTES
MAX_OFFERS_BYTES = 256 * 1024
"""Signed offers in one request or answer."""

MAX_OFFERS = 2048
MAX_WANTED = 32
"""Offers in an answer about one stretch of layers, whatever the size of the swarm."""

MAX_EXCHANGE_BYTES = MAX_DIGEST_BYTES + MAX_OFFERS_BYTES + limits.MAX_OFFER_BYTES + 1024
"""One request or answer, encoded."""

REQUESTS_PER_S = 10.0
REQUESTS_BURST = 40.0
OFFERS_PER_REQUEST = 50
"""So many offers to check cost as much as a request more."""

Offers = Annotated[tuple[SignedOffer, ...], Meta(max_length=MAX_OFFERS)]


class Ask(Struct, frozen=True, array_like=True, tag=1):
    """`offers`: what the asker wants known. `digest`: what it knows; None where it wants nothing back. `want`: it wants
    only such offers, and at most MAX_WANTED of them; the digest is of such ones.
    """

    offers: Offers = ()
    digest: Annotated[bytes, Meta(max_length=MAX_DIGEST_BYTES)] | None = None
    want: Want | None = None


class Told(Struct, frozen=True, array_like=True, tag=2):
    """`offers`: what the asker lacked. `more`: ask again. `now`: the answerer's clock, to notice a wrong one by."""

    offers: Offers = ()
    more: bool = False
    now: UnixSeconds = 0.0


def encode(message: Ask | Told) -> bytes:
    """At most MAX_EXCHANGE_BYTES."""
    return encode_header(message)


def decode_ask(data: Buffer) -> Ask:
    """Raises Malformed."""
    _check_size(data)
    ask: Ask = decode_header(data, Ask)
    return ask


def decode_told(data: Buffer) -> Told:
    """Raises Malformed."""
    _check_size(data)
    told: Told = decode_header(data, Told)
    return told


def answer(ask: Ask, book: OfferBook, now: float) -> tuple[Told, list[SignedOffer]]:
    """What to tell, and the offers in the request that were news here. Raises Malformed."""
    news = book.merge(ask.offers, now)
    if ask.digest is None:
        return Told(now=now), news
    if ask.want is not None:
        return Told(tuple(book.wanted(ask.digest, now, ask.want, MAX_WANTED)), False, now), news
    lacking, more = book.lacking(ask.digest, now, MAX_OFFERS_BYTES)
    return Told(tuple(lacking[:MAX_OFFERS]), more or len(lacking) > MAX_OFFERS, now), news


def cost(ask: Ask) -> float:
    """What answering takes, in plain requests."""
    return 1.0 + len(ask.offers) / OFFERS_PER_REQUEST


def batches(news: Sequence[SignedOffer]) -> list[Ask]:
    """Requests that carry all of `news`, each within the bounds."""
    asks: list[Ask] = []
    batch: list[SignedOffer] = []
    size = 0
    for signed in news:
        weight = len(signed.body) + 72
        if batch and (size + weight > MAX_OFFERS_BYTES or len(batch) == MAX_OFFERS):
            asks.append(Ask(tuple(batch)))
            batch, size = [], 0
        batch.append(signed)
        size += weight
    return [*asks, Ask(tuple(batch))] if batch else asks


def neighbours(me: str, members: Collection[str], count: int, era: int) -> list[str]:
    """The `count` members that `me` talks to in this era: everybody's choice differs, and stays while members come and
    go, so streams are kept (rendezvous hashing, Thaler and Ravishankar 1998). Out-degree `count` makes a random graph.
    """
    if len(members) <= count:
        return sorted(members)

    def weight(peer: str) -> bytes:
        return hashlib.sha256(f"{me}|{peer}|{era}".encode()).digest()

    return sorted(members, key=weight)[:count]


def meter() -> Meter:
    """Bounds what one asker may ask for."""
    return Meter(REQUESTS_PER_S, REQUESTS_BURST, "asks for offers too often")


def _check_size(data: Buffer) -> None:
    if len(data) > MAX_EXCHANGE_BYTES:
        raise Malformed(f"exchange of {len(data)} bytes, {MAX_EXCHANGE_BYTES} allowed")
