"""What Kademlia may store for Paceline."""

from __future__ import annotations

import msgspec
import pytest
from dht_making import NOW, offer, person
from hypothesis import given
from hypothesis import strategies as st

from paceline.dht import offers, records
from paceline.wire.errors import OfferRejected
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import SignedOffer

ALICE, MALLORY = person(1), person(2)
AT = PeerAddress(ALICE.peer, ("/ip4/127.0.0.1/tcp/4001",))
KEY = records.contact_key(ALICE.peer)


def value(*, now: float = NOW, lifetime: float = 300.0) -> bytes:
    return records.sign_contact(ALICE, AT, now, lifetime)


def refused(record: bytes, *, key: str = KEY, now: float = NOW) -> str:
    validator = records.ContactValidator(lambda: now)
    with pytest.raises(OfferRejected) as caught:
        validator.validate(key, record)
    assert validator.rejected == {caught.value.reason: 1}
    return caught.value.reason


def test_a_contact_is_found_under_its_peers_key_only() -> None:
    records.ContactValidator(lambda: NOW).validate(KEY, value())
    assert records.verify_contact(value(), NOW).at == AT
    assert refused(value(), key=records.contact_key(MALLORY.peer)) == "wrong_peer"


def test_what_is_not_stored() -> None:
    assert refused(value(), now=NOW + 300) == "expired"
    assert refused(value(), now=NOW - 10) == "from_future"
    assert refused(value(lifetime=records.MAX_CONTACT_LIFETIME_S + 1)) == "too_long_lived"
    assert refused(b"garbage") == "malformed"
    assert refused(bytes(offers.MAX_SIGNED_BYTES + 1)) == "oversized"
    assert refused(records.sign_contact(MALLORY, AT, NOW, 300.0)) == "forged"


def test_an_offer_is_no_contact_and_a_contact_no_offer() -> None:
    body = offers.decode(value()).body
    as_offer = SignedOffer(body, ALICE.sign(b"paceline/offer/1\x00" + body))
    assert refused(offers.encode(as_offer)) == "forged"
    assert refused(offers.encode(offers.sign(ALICE, offer(ALICE)))) in ("malformed", "forged")
    with pytest.raises(OfferRejected):
        offers.verify(offers.decode(value()), NOW)


def test_the_newest_is_selected_and_the_last_of_equals() -> None:
    validator = records.ContactValidator(lambda: NOW)
    old, new = value(now=NOW - 5), value(now=NOW)
    assert validator.select(KEY, [old, new]) == 1
    assert validator.select(KEY, [new, old]) == 0
    assert validator.select(KEY, [new, new, old]) == 1
    assert validator.select(KEY, [b"junk", old]) == 1


@given(st.text(max_size=64))
def test_keys_fit_what_the_library_answers(text: str) -> None:
    assert len(records.contact_key(text).encode()) <= 50
    assert records.contact_key(text).split("/")[1] == records.NAMESPACE
    assert records.model_key(text) != records.model_key(text + "x")


def test_a_model_key_is_a_cid_to_the_library() -> None:
    from libp2p.kad_dht.kad_dht import _encode_key

    assert _encode_key(records.model_key("toy")) == records.model_multihash("toy")


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(data: bytes) -> None:
    assert refused(data) in ("malformed", "oversized", "wrong_peer")
    assert records.ContactValidator(lambda: NOW).select(KEY, [data]) == 0


def test_a_contact_of_all_addresses_fits() -> None:
    far = msgspec.structs.replace(AT, control=("/" + "a" * 255,) * 15)
    assert len(records.sign_contact(ALICE, far, NOW, 300)) <= offers.MAX_SIGNED_BYTES
