"""Offers, identities and books that the tests of this folder make."""

from __future__ import annotations

from functools import lru_cache

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from paceline.dht import offers
from paceline.net.identity import Identity
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Measured, Offer, Service, SignedOffer

NOW = 1_800_000_000.0
REVISION = bytes(range(32))


@lru_cache(maxsize=64)
def person(n: int) -> Identity:
    """The same identity for the same number."""
    return Identity(Ed25519PrivateKey.from_private_bytes(n.to_bytes(32, "big")))


def service(start: int = 0, end: int = 10, *, model: str = "toy", revision: bytes = REVISION) -> Service:
    return Service(
        model=model,
        revision=revision,
        start=start,
        end=end,
        layers=30,
        hidden=64,
        numerics="cpu-f32",
        measured=Measured(decode_s=0.01, prefill_s_per_position=0.001),
        kv_free=1000,
        max_context=2048,
    )


def offer(
    who: Identity, sequence: int = 1, *, issued: float = NOW, lifetime: float = 12.0, model: str = "toy"
) -> Offer:
    return Offer(
        at=PeerAddress(who.peer, ("/ip4/127.0.0.1/tcp/4001",), ("/ip4/127.0.0.1/tcp/4002",)),
        sequence=sequence,
        issued_at=issued,
        expires_at=issued + lifetime,
        services=(service(model=model),),
    )


def signed(who: Identity, sequence: int = 1, *, issued: float = NOW, lifetime: float = 12.0) -> SignedOffer:
    return offers.sign(who, offer(who, sequence, issued=issued, lifetime=lifetime))


def with_body(it: SignedOffer, body: bytes) -> SignedOffer:
    return msgspec.structs.replace(it, body=body)
