"""Small random swarms, and a ring search so plain that it can be believed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import strategies as st
from msgspec import structs

from paceline.routing.cost import FRAME_OVERHEAD_BYTES, GUESS_UPLINK_BYTES_PER_S, MIN_EXTRA_SHARE
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import FEW_SESSIONS, Measured, Offer, Service

MODEL = "toy"
REVISION = b"\x01" * 32
NOW = 1_000.0
GUESS = 0.04


def service(start: int, end: int, layers: int, decode_s: float = 0.01, **more: object) -> Service:
    """One service with sane defaults; `more` overrides fields of Service, or of Measured by their names."""
    measured = {"decode_s": decode_s, "prefill_s_per_position": 1e-4}
    for name in Measured.__struct_fields__:
        if name in more:
            measured[name] = more.pop(name)  # type: ignore[assignment]
    fields: dict[str, object] = {
        "model": MODEL, "revision": REVISION, "hidden": 64, "numerics": "cpu-f32", "kv_free": 4096, "max_context": 4096,
    } | more  # fmt: skip
    return Service(start=start, end=end, layers=layers, measured=Measured(**measured), **fields)  # type: ignore[arg-type]


def offer(peer: str, *services: Service, **more: object) -> Offer:
    fields: dict[str, object] = {"sequence": 1, "issued_at": NOW - 5.0, "expires_at": NOW + 30.0} | more
    return Offer(at=PeerAddress(peer), services=services, **fields)  # type: ignore[arg-type]


MILLISECONDS = st.integers(0, 80).map(lambda value: value / 1000.0)


@st.composite
def swarms(draw: st.DrawFn, max_layers: int = 6, max_peers: int = 6, close: bool = False) -> tuple[Offer, ...]:
    """Overlapping spans, several per peer at times, uneven speeds, partial and one-sided measurements, any metric.

    `close`: everybody measured everybody at next to nothing, so that hopping to and fro would pay if it were lawful.
    """
    layers = draw(st.integers(1, max_layers))
    names = [f"p{at}" for at in range(draw(st.integers(1, max_peers)))]
    offers = tuple(_drawn_offer(draw, name, names, layers) for name in names)
    if not close:
        return offers
    rtts = tuple((name, draw(st.sampled_from([0.0, 0.001, 0.002]))) for name in names)
    return tuple(structs.replace(o, rtts=tuple(row for row in rtts if row[0] != o.peer)) for o in offers)


def _drawn_offer(draw: st.DrawFn, name: str, names: list[str], layers: int) -> Offer:
    services = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        start = draw(st.integers(0, layers - 1))
        services.append(_drawn_service(draw, start, layers))
    near = draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names)))
    return offer(name, *services, rtts=tuple((peer, draw(MILLISECONDS)) for peer in near))


def _drawn_service(draw: st.DrawFn, start: int, layers: int) -> Service:
    tenth = MILLISECONDS.map(lambda value: value / 10)
    return service(
        start,
        draw(st.integers(start + 1, layers)),
        layers,
        decode_s=draw(MILLISECONDS),
        fixed_s=draw(tenth),
        head_s=draw(tenth),
        decode_extra_s=draw(tenth),
        decode_many_s=draw(tenth),
        decode_past_s=draw(tenth) / 1000,
        prefill_past_s=draw(tenth) / 1000,
        sessions=draw(st.integers(0, 6)),
        uplink_bytes_per_s=draw(st.sampled_from([0.0, 1e5, 1e7])),
        numerics=draw(st.sampled_from(["a", "a", "a", "b"])),
    )


def rtt_s(offers: tuple[Offer, ...], a: str, b: str) -> float:
    """The smaller of what both ends measured, else the guess."""
    found = [rtt for o in offers for near, rtt in o.rtts if {o.peer, near} == {a, b} and a != b]
    return 0.0 if a == b else min(found, default=GUESS)


Part = tuple[str, Service, int, int]


def rings(offers: tuple[Offer, ...], layers: int, ends: frozenset[str] | None = None) -> Iterator[tuple[Part, ...]]:
    """Every ring of one numerics class in which a peer's parts are consecutive. Exponential, and obviously complete.

    `ends`: only these hold the first and the last layer, and one of them may come again to end the ring it began.
    """
    parts = [
        (o.peer, s, start, end)
        for o in offers
        for s in o.services
        for start in range(s.start, s.end)
        for end in range(start + 1, s.end + 1)
    ]

    def grow(done: tuple[Part, ...], at: int) -> Iterator[tuple[Part, ...]]:
        if at == layers:
            yield done
            return
        for part in parts:
            riders = [p[0] for p in done]
            lawful = part[0] not in riders or riders[-1] == part[0]
            if ends is not None:
                back = bool(riders) and riders[-1] == riders[0] and len(set(riders)) > 1
                lawful = (lawful and not back) or (part[0] in ends and bool(riders) and part[0] == riders[0])
                outer = (part[2] == 0 or part[3] == layers) and part[0] not in ends
                lawful = lawful and not outer
            if part[2] == at and lawful and (not done or done[0][1].numerics == part[1].numerics):
                yield from grow((*done, part), part[3])

    yield from grow((), 0)


def ring_s(offers: tuple[Offer, ...], ring: tuple[Part, ...], past: float = 1.0) -> float:
    """Token time by the formula of cost.py, written a second time; `past` as of a request that says nothing."""
    total = 0.0
    for _, s, start, end in ring:
        decode_s = s.measured.decode_s + past * s.measured.decode_past_s
        total += load(s) * (s.measured.fixed_s + decode_s * (end - start) / (s.end - s.start))
    total += load(ring[-1][1]) * ring[-1][1].measured.head_s
    for (a, s, _, _), (b, _, _, _) in pairwise(ring):
        if a != b:
            uplink = s.measured.uplink_bytes_per_s or GUESS_UPLINK_BYTES_PER_S
            total += rtt_s(offers, a, b) / 2 + (4 * s.hidden + FRAME_OVERHEAD_BYTES) / uplink
    return total + rtt_s(offers, ring[-1][0], ring[0][0]) / 2


def load(s: Service) -> float:
    m, total = s.measured, 1.0
    for other in range(s.sessions):
        each = m.decode_extra_s if other < FEW_SESSIONS - 1 or not m.decode_many_s else m.decode_many_s
        total += max(each / m.decode_s if m.decode_s else 0.0, MIN_EXTRA_SHARE)
    return total
