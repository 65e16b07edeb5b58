"""Keys by stretches of layers: few for each node, few nodes for each, and answers that do not grow with the swarm."""

from __future__ import annotations

from collections import Counter
from functools import cache

import msgspec
import pytest
from dht_making import NOW, REVISION, offer, person, service
from hypothesis import given
from hypothesis import strategies as st

from paceline.dht import exchange, offers, stretches
from paceline.dht.exchange import Ask, Told
from paceline.dht.stretches import MAX_KEYS, MAX_STRETCHES, Want
from paceline.dht.view import OfferBook
from paceline.wire.limits import MAX_LAYERS, MAX_SPANS_PER_OFFER
from paceline.wire.offers import Offer, Service, SignedOffer

LAYERS = 80


def part(start: int, end: int, layers: int = LAYERS, revision: bytes = REVISION) -> Service:
    return msgspec.structs.replace(service(start, end, revision=revision), layers=layers)


@st.composite
def services(draw: st.DrawFn) -> Service:
    layers = draw(st.integers(1, MAX_LAYERS))
    start = draw(st.integers(0, layers - 1))
    return part(start, draw(st.integers(start + 1, layers)), layers, draw(st.sampled_from([REVISION, bytes(32)])))


@given(st.integers(1, MAX_LAYERS), st.data())
def test_stretches_cut_a_model_without_rest(layers: int, data: st.DataObject) -> None:
    numbers = stretches.touched(layers, range(layers))
    assert len(numbers) <= MAX_STRETCHES
    assert [layer for n in numbers for layer in range(*edges(layers, n))] == list(range(layers))
    layer = data.draw(st.integers(0, layers - 1))
    (number,) = stretches.touched(layers, [layer, -1, layers])
    assert layer in stretches.span(layers, number)


def edges(layers: int, number: int) -> tuple[int, int]:
    span = stretches.span(layers, number)
    return span.start, span.end


@given(st.lists(services(), max_size=MAX_SPANS_PER_OFFER), st.booleans())
def test_a_node_has_few_keys_and_is_found_by_each_of_its_layers(served: list[Service], crowd: bool) -> None:
    keys = stretches.filed_under(served, crowd=crowd)
    assert len(keys) == len(set(keys)) <= MAX_KEYS
    if crowd and len(served) == 1:
        (it,) = served
        for layer in (it.start, it.end - 1):
            (number,) = stretches.touched(it.layers, [layer])
            assert stretches.text(it.revision, number) in keys
            want = Want(it.revision, *edges(it.layers, number))
            assert want.overlap(offer_of(1, it)) > 0
    if not crowd:
        assert set(keys) == {key for it in served for key in (it.model, it.revision.hex())}


def offer_of(n: int, *served: Service) -> Offer:
    return msgspec.structs.replace(offer(person(n)), services=served)


@cache
def swarm(nodes: int) -> tuple[SignedOffer, ...]:
    """Spans of 10 layers, anywhere in a model of 80."""
    return tuple(
        offers.sign(person(n + 1), offer_of(n + 1, part(start := n * 7 % (LAYERS - 9), start + 10)))
        for n in range(nodes)
    )


def test_in_a_crowd_no_key_holds_everybody() -> None:
    nodes = 10_000
    filed: Counter[str] = Counter()
    for n in range(nodes):
        start = n * 7 % (LAYERS - 9)
        filed.update(stretches.filed_under([part(start, start + 10)], crowd=True))
    by_stretch = [count for key, count in filed.items() if "/" in key]
    assert len(by_stretch) == 10
    assert max(by_stretch) < nodes / 4
    assert filed["toy"] == filed[REVISION.hex()] == filed[stretches.text(REVISION, 0)] < nodes / 8


@pytest.mark.parametrize("nodes", [30, 300, 1200])
def test_an_answer_about_a_stretch_does_not_grow_with_the_swarm(nodes: int) -> None:
    book = OfferBook()
    book.merge(swarm(nodes), NOW)
    want = Want(REVISION, 40, 48)
    told, _ = exchange.answer(Ask(digest=b"", want=want), book, NOW)
    whole, _ = exchange.answer(Ask(digest=b""), book, NOW)
    size = len(exchange.encode(told))
    assert size <= 32 * 400
    assert len(told.offers) == min(exchange.MAX_WANTED, sum(bool(want.overlap(it)) for it in book.live(NOW)))
    assert all(want.overlap(offers.peek(it)) for it in told.offers)
    assert not told.more
    assert nodes < 300 or len(exchange.encode(whole)) > 5 * size
    found = OfferBook()
    found.merge(told.offers, NOW)
    again, _ = exchange.answer(Ask(digest=found.digest(NOW, want), want=want), book, NOW)
    assert not {it.body for it in again.offers} & {it.body for it in told.offers}


def test_who_holds_all_of_the_stretch_is_told_first() -> None:
    book = OfferBook()
    book.merge(swarm(300), NOW)
    want = Want(REVISION, 40, 48)
    told = book.wanted(b"", NOW, want, 10)
    assert {want.overlap(offers.peek(it)) for it in told} == {8}
    assert book.wanted(b"", NOW, Want(bytes(32), 40, 48), 10) == []


def test_an_older_member_reads_the_question_and_tells_all() -> None:
    """The field was appended: who does not know it sees a plain request."""

    class OldAsk(msgspec.Struct, frozen=True, array_like=True, tag=1):
        offers: tuple[SignedOffer, ...] = ()
        digest: bytes | None = None

    data = exchange.encode(Ask(digest=b"", want=Want(REVISION, 0, 8)))
    assert msgspec.msgpack.decode(data, type=OldAsk) == OldAsk(digest=b"")
    assert exchange.decode_ask(msgspec.msgpack.encode(OldAsk(digest=b"x" * 16))) == Ask(digest=b"x" * 16)
    assert exchange.decode_told(exchange.encode(Told())) == Told()
