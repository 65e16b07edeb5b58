"""What Paceline keeps in Kademlia: where a peer can be reached, and who says it serves a model.

Two kinds. A *contact* is a value record under a key made of the peer's id: its addresses, signed by it, good for a few
minutes. A *provider record* under a key made of a model's name or revision names peers only. Neither is an offer, and
neither enters a view: both only say whom to ask, and the answer is a live offer or nothing. So records may live for
minutes, which Kademlia needs, while a dead node leaves the views within seconds (docs/adr/0004-directory.md).

Knows keys, bytes and rules. Refuses to know the DHT that holds them (dht/kad.py).
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct

from paceline.dht import offers
from paceline.net import identity as keys
from paceline.net.identity import Identity
from paceline.wire import limits
from paceline.wire.codec import decode_header, encode_header
from paceline.wire.errors import Malformed, OfferRejected
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Count, SignedOffer, UnixSeconds

NAMESPACE = "paceline"

MAX_CONTACT_LIFETIME_S = 600.0

_DOMAIN = b"paceline/contact/1\x00"
_CID_HEADER = bytes((0x01, 0x55))
_SHA256_HEADER = bytes((0x12, 0x20))
"""CIDv1 of raw bytes; multihash of a SHA-256, 32 bytes (multiformats)."""


class Contact(Struct, frozen=True, array_like=True):
    """Where a peer can be reached. Times are unix seconds."""

    at: PeerAddress
    sequence: Count
    issued_at: UnixSeconds
    expires_at: UnixSeconds


def contact_key(peer: str) -> str:
    """42 characters: py-libp2p answers no FIND_NODE for a key of more than 50 bytes, so the id itself does not fit."""
    digest = hashlib.sha256(peer.encode()).digest()[:20]
    return f"/{NAMESPACE}/{base64.b32encode(digest).decode().lower()}"


def model_key(model: str) -> str:
    """CIDv1 of a model's name or of its revision in hex. (Text that is not a CID would be parsed as hex or UTF-8.)"""
    return "b" + base64.b32encode(_CID_HEADER + model_multihash(model)).decode().lower().rstrip("=")


def model_multihash(model: str) -> bytes:
    """What the DHT makes of `model_key`: 34 bytes."""
    return _SHA256_HEADER + hashlib.sha256(b"paceline/model/1\x00" + model.encode()).digest()


def sign_contact(identity: Identity, at: PeerAddress, now: float, lifetime_s: float) -> bytes:
    """A value record. The sequence is unix milliseconds."""
    body = encode_header(Contact(at, int(now * 1000), now, now + lifetime_s))
    return offers.encode(SignedOffer(body, identity.sign(_DOMAIN + body)))


def verify_contact(value: bytes, now: float, *, key: str | None = None) -> Contact:
    """The contact inside, if it may be believed at `now` (and lies under its `key`, if given). Raises OfferRejected."""
    signed = offers.decode(value)
    contact = _parse(signed)
    if key is not None and key != contact_key(contact.at.peer):
        raise OfferRejected("contact filed under another peer's key", reason="wrong_peer", peer=contact.at.peer)
    offers.check_times(contact, now, MAX_CONTACT_LIFETIME_S, contact.at.peer)
    if not keys.verify(PeerId(contact.at.peer), _DOMAIN + signed.body, signed.signature):
        raise OfferRejected("contact is not signed by its peer", reason="forged", peer=contact.at.peer)
    return contact


class ContactValidator:
    """Kademlia's gate for the namespace: nothing unsigned, stale or oversized is stored, answered or passed on."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rejected: Counter[str] = Counter()
        self._clock = clock

    def validate(self, key: str, value: bytes) -> None:
        """Raises OfferRejected."""
        try:
            verify_contact(value, self._clock(), key=key)
        except OfferRejected as error:
            self.rejected[error.reason] += 1
            raise

    def select(self, key: str, values: Sequence[bytes]) -> int:
        """Index of the newest; of equals the LAST, because py-libp2p only refreshes a record that wins the tie."""
        return max(range(len(values)), key=lambda index: (_sequence(values[index]), index))


def _sequence(value: bytes) -> int:
    try:
        return _parse(offers.decode(value)).sequence
    except OfferRejected:
        return -1


def _parse(signed: SignedOffer) -> Contact:
    if len(signed.body) > limits.MAX_OFFER_BYTES:
        raise OfferRejected("contact is too large", reason="oversized")
    try:
        contact: Contact = decode_header(signed.body, Contact)
    except Malformed as error:
        raise OfferRejected(f"not a contact: {error.message}", reason="malformed") from error
    return contact
