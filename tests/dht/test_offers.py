"""When an offer may be believed, and that nothing else passes."""

from __future__ import annotations

import msgspec
import pytest
from dht_making import NOW, offer, person, service, signed, with_body
from hypothesis import given
from hypothesis import strategies as st

from paceline.dht import offers
from paceline.wire import limits
from paceline.wire.codec import encode_header
from paceline.wire.errors import OfferRejected
from paceline.wire.offers import SignedOffer

ALICE, MALLORY = person(1), person(2)


def reason(it: SignedOffer, now: float = NOW, peer: str | None = None) -> str:
    with pytest.raises(OfferRejected) as caught:
        offers.verify(it, now, peer=peer)
    return caught.value.reason


def test_a_signed_offer_crosses_the_wire_and_verifies() -> None:
    original = offer(ALICE)
    again = offers.verify(offers.decode(offers.encode(offers.sign(ALICE, original))), NOW, peer=ALICE.peer)
    assert again == original


def test_any_changed_byte_is_refused() -> None:
    good = signed(ALICE)
    for index in range(0, len(good.body), 7):
        body = bytearray(good.body)
        body[index] ^= 1
        with pytest.raises(OfferRejected):
            offers.verify(with_body(good, bytes(body)), NOW)
    assert reason(msgspec.structs.replace(good, signature=bytes(64))) == "forged"


def test_somebody_elses_signature_is_forged() -> None:
    body = encode_header(offer(ALICE))
    assert reason(SignedOffer(body, MALLORY.sign(b"paceline/offer/1\x00" + body))) == "forged"


def test_a_signature_made_for_another_purpose_is_forged() -> None:
    body = encode_header(offer(ALICE))
    for domain in (b"", b"paceline/contact/1\x00", b"noise-libp2p-static-key:"):
        assert reason(SignedOffer(body, ALICE.sign(domain + body))) == "forged"


def test_a_peer_that_is_no_key_is_forged() -> None:
    fake = msgspec.structs.replace(offer(ALICE), at=msgspec.structs.replace(offer(ALICE).at, peer="12D3KooWé"))
    body = encode_header(fake)
    assert reason(SignedOffer(body, ALICE.sign(b"paceline/offer/1\x00" + body))) == "forged"


def test_times() -> None:
    assert reason(signed(ALICE), NOW + 12.0) == "expired"
    assert reason(signed(ALICE), NOW - offers.MAX_SKEW_S - 0.01) == "from_future"
    assert reason(signed(ALICE, lifetime=limits.MAX_OFFER_LIFETIME_S + 1)) == "too_long_lived"
    assert reason(signed(ALICE, lifetime=0.0)) == "malformed"
    assert reason(signed(ALICE, lifetime=-5.0)) == "malformed"


def test_a_clock_within_the_stated_skew_is_tolerated_and_shortens_nothing() -> None:
    offers.verify(signed(ALICE), NOW - offers.MAX_SKEW_S)
    offers.verify(signed(ALICE), NOW + 11.99)


def test_filed_under_another_name() -> None:
    assert reason(signed(ALICE), peer=MALLORY.peer) == "wrong_peer"
    with pytest.raises(OfferRejected, match="another peer"):
        offers.sign(MALLORY, offer(ALICE))


def test_sizes() -> None:
    good = signed(ALICE)
    assert reason(with_body(good, bytes(limits.MAX_OFFER_BYTES + 1))) == "oversized"
    with pytest.raises(OfferRejected) as caught:
        offers.decode(bytes(offers.MAX_SIGNED_BYTES + 1))
    assert caught.value.reason == "oversized"
    wide = service(model="m" * 128)
    largest = msgspec.structs.replace(offer(ALICE), services=(wide,) * limits.MAX_SPANS_PER_OFFER)
    assert len(offers.encode(offers.sign(ALICE, largest))) <= offers.MAX_SIGNED_BYTES


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (20, 31)])
def test_a_span_that_is_none_is_refused_on_both_sides(start: int, end: int) -> None:
    bad = msgspec.structs.replace(offer(ALICE), services=(service(start, end),))
    with pytest.raises(OfferRejected):
        offers.sign(ALICE, bad)
    body = encode_header(bad)
    assert reason(SignedOffer(body, ALICE.sign(b"paceline/offer/1\x00" + body))) == "malformed"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    body = encode_header(msgspec.structs.replace(offer(ALICE), expires_at=value))
    assert reason(SignedOffer(body, ALICE.sign(b"paceline/offer/1\x00" + body))) == "malformed"


@given(st.binary(max_size=300))
def test_any_bytes_give_an_offer_or_the_typed_error(data: bytes) -> None:
    for attempt in (lambda: offers.decode(data), lambda: offers.verify(SignedOffer(data, bytes(64)), NOW)):
        with pytest.raises(OfferRejected):
            attempt()


@given(st.integers(0, 500), st.binary(min_size=1, max_size=4))
def test_a_damaged_record_gives_the_typed_error_or_the_same_offer(at: int, patch: bytes) -> None:
    record = offers.encode(signed(ALICE))
    damaged = record[:at] + patch + record[at + len(patch) :]
    try:
        assert offers.verify(offers.decode(damaged), NOW) == offer(ALICE)
    except OfferRejected:
        pass


@given(st.integers(0, 1 << 60), st.floats(0, 4e9), st.floats(1, 120))
def test_a_stamp_always_supersedes_the_previous_one(previous: int, now: float, lifetime: float) -> None:
    last = msgspec.structs.replace(offer(ALICE), sequence=previous)
    fresh = offers.stamp(last, now, lifetime, after=previous)
    assert offers.newer(fresh, last)
    assert not offers.newer(last, fresh)
    assert fresh.issued_at == now


def test_a_withdrawal_supersedes_and_outlives_what_it_withdraws() -> None:
    last = offer(ALICE)
    gone = offers.withdrawal(last, NOW + 3)
    assert offers.newer(gone, last)
    assert gone.expires_at >= last.expires_at
    assert offers.is_withdrawal(offers.verify(offers.sign(ALICE, gone), NOW + 3))
    assert not offers.serves(gone, "toy")
    assert offers.serves(last, "toy")
    assert offers.serves(last, bytes(range(32)).hex())
    assert not offers.serves(last, "other")
