"""The view's laws: order does not matter, nothing expired is shown, nothing older comes back."""

from __future__ import annotations

import random

import msgspec
import pytest
from dht_making import NOW, offer, person, signed, with_body
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.dht import offers
from paceline.dht.view import OfferBook, read_digest
from paceline.wire.errors import Malformed, OfferRejected
from paceline.wire.offers import SignedOffer

MUCH = 1 << 20
PEERS = 4


@st.composite
def histories(draw: st.DrawFn) -> list[SignedOffer]:
    """Offers of a few peers as honest signers make them: sequence grows with the time of issue."""
    made = []
    for who in range(1, PEERS + 1):
        issued = NOW - draw(st.floats(0, 20))
        for sequence in range(1, draw(st.integers(0, 4)) + 1):
            made.append(signed(person(who), sequence, issued=issued, lifetime=draw(st.floats(0.5, 60))))
            issued += draw(st.floats(0, 8))
    return made


def contents(book: OfferBook, now: float) -> set[tuple[str, int]]:
    return {(it.peer, it.sequence) for it in book.live(now)}


def filled(arrived: list[SignedOffer], now: float = NOW) -> OfferBook:
    book = OfferBook()
    book.merge(arrived, now)
    return book


@settings(max_examples=60)
@given(histories(), st.randoms(use_true_random=False))
def test_merging_is_commutative_associative_and_idempotent(made: list[SignedOffer], rng: random.Random) -> None:
    shuffled = made + rng.sample(made, len(made) // 2)
    rng.shuffle(shuffled)
    one, other = filled(made), filled(shuffled)
    assert contents(one, NOW) == contents(other, NOW)
    assert read_digest(one.digest(NOW)) == read_digest(other.digest(NOW))
    assert one.merge(shuffled, NOW) == []


@settings(max_examples=60)
@given(histories(), st.lists(st.tuples(st.floats(0, 30), st.integers(0, 30)), max_size=20))
def test_never_expired_never_older_whatever_arrives_when(
    made: list[SignedOffer], script: list[tuple[float, int]]
) -> None:
    book = OfferBook()
    newest: dict[str, int] = {}
    now = NOW
    for wait, index in script:
        now += wait
        if made:
            book.merge([made[index % len(made)]], now)
        if index % 3 == 0:
            book.expire(now)
        for it in book.live(now):
            assert it.expires_at > now
            assert it.sequence >= newest.get(it.peer, 0)
            newest[it.peer] = it.sequence


def test_a_withdrawn_node_does_not_come_back_by_an_older_offer() -> None:
    last = offer(person(1), lifetime=20)
    gone = offers.withdrawal(last, NOW + 1)
    book = filled([offers.sign(person(1), gone)], NOW + 1)
    for later in (NOW + 2, NOW + 19, NOW + 25):
        book.expire(later)
        assert book.merge([offers.sign(person(1), last)], later) == []
        assert book.live(later) == []
        assert book.find(last.peer, later) is None
    again = offers.stamp(last, NOW + 30, 12, after=gone.sequence)
    assert book.accept(offers.sign(person(1), again), NOW + 30)


def test_a_shorter_lived_successor_does_not_let_its_predecessor_back() -> None:
    old = signed(person(1), 1, lifetime=100)
    book = filled([signed(person(1), 2, issued=NOW + 1, lifetime=5)], NOW + 1)
    book.expire(NOW + 50)
    assert not book.accept(old, NOW + 50)


def test_rejects_are_counted_by_reason_and_change_nothing() -> None:
    book = filled([signed(person(1), 5)])
    good = signed(person(1), 6)
    bad = [
        msgspec.structs.replace(good, signature=bytes(64)),
        signed(person(2), lifetime=500),
        signed(person(3), issued=NOW - 60),
        signed(person(4), issued=NOW + 60),
        with_body(good, b"junk"),
        with_body(good, bytes(9000)),
    ]
    assert book.merge([*bad, signed(person(1), 4), signed(person(1), 5)], NOW) == []
    assert contents(book, NOW) == {(person(1).peer, 5)}
    reasons = ("forged", "too_long_lived", "expired", "from_future", "malformed", "oversized")
    assert {name: book.counts[f"rejected_{name}"] for name in reasons} == dict.fromkeys(reasons, 1)
    assert (book.counts["stale"], book.counts["known"], book.counts["accepted"]) == (1, 1, 1)
    with pytest.raises(OfferRejected):
        book.accept(bad[0], NOW)


def test_a_full_book_keeps_whom_it_knows_until_they_end() -> None:
    book = OfferBook(capacity=2)
    book.merge([signed(person(1)), signed(person(2), lifetime=5)], NOW)
    assert not book.accept(signed(person(3), lifetime=60), NOW)
    assert book.accept(signed(person(1), 2), NOW), "a known peer can always be renewed"
    assert book.counts["full"] == 1
    assert book.accept(signed(person(3), lifetime=60), NOW + 6), "an ended offer made room"
    assert {it.peer for it in book.live(NOW + 6)} == {person(1).peer, person(3).peer}


def test_memory_of_the_past_is_bounded() -> None:
    book = OfferBook(capacity=2)
    for n in range(1, 31):
        book.accept(signed(person(n), issued=NOW + 2 * n, lifetime=1), NOW + 2 * n)
        book.expire(NOW + 2 * n + 1)
    assert len(book._floors) <= 8


@settings(max_examples=60)
@given(histories(), histories(), st.integers(1, 3000))
def test_rounds_of_digest_and_answer_bring_everything_over(
    mine: list[SignedOffer], theirs: list[SignedOffer], max_bytes: int
) -> None:
    asker, answerer = filled(mine), filled(theirs)
    both = contents(filled(mine + theirs), NOW)
    for _ in range(PEERS + 1):
        news, more = answerer.lacking(asker.digest(NOW), NOW, max_bytes)
        asker.merge(news, NOW)
        if not more:
            break
    assert contents(asker, NOW) == both
    assert answerer.lacking(asker.digest(NOW), NOW, MUCH) == ([], False)


@given(st.binary(max_size=100))
def test_any_digest_is_read_or_refused(digest: bytes) -> None:
    book = filled([signed(person(1))])
    if len(digest) % 16:
        with pytest.raises(Malformed):
            book.lacking(digest, NOW, MUCH)
    else:
        assert not book.lacking(digest, NOW, MUCH)[1]


def test_selection_by_model() -> None:
    toy, other = offer(person(1)), offer(person(2), model="other")
    book = filled([offers.sign(person(1), toy), offers.sign(person(2), other)])

    def peers(model: str | None) -> set[str]:
        return {it.peer for it in book.live(NOW, model)}

    assert peers(None) == {toy.peer, other.peer}
    assert peers("toy") == {toy.peer}
    assert peers("absent") == set()
    assert peers(bytes(range(32)).hex()) == {toy.peer, other.peer}
