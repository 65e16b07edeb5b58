"""Which span a node should hold: for a fresh fleet, for one that joins, and whether one that serves should move.

Knows measured speeds, memory in layers, and what the others hold. Refuses to move anybody: it returns advice, each node
decides for itself, and nobody re-tiles a survivor.

- :func:`split_layers`: a fresh fleet in ring order. Water-filling ``min(capacity_i, λ · speed_i)`` on measured decode
  speed (as Parallax does with FLOPs; decode is bound by memory bandwidth, so speed is measured decode), made exact for
  whole layers in a fixed order: the least λ for which greedy filling reaches the end. It minimises the slowest stage,
  which is what bounds a full pipeline.
- :func:`fastest_fleet`: which devices to use at all when one stream's latency counts. Devices that would make the ring
  slower get nothing (the observation is prima.cpp's). Exact, a bounded knapsack.
- :func:`choose_span`: a joining node fills what is missing, then goes where the swarm's tokens a second grow most
  (flow.py), near-ties decided by the ring they make. It holds all that fits: a longer span serves any of its layers.
- :func:`should_move`: only where the swarm gains a tenth, and never where a layer would lose its last replica.
- :func:`turning_points`: where consecutive stages overlap, the cut between them, so that each may drop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.routing.flow import Held, tokens_per_s
from paceline.routing.latency import Floats, Ints
from paceline.routing.view import ServiceTable
from paceline.wire.ids import Span

MOVE_GAIN = 1.1
"""A serving node moves only where the swarm's tokens a second would gain a tenth."""

NEAR_TIE = 0.98
"""Spans that bring the swarm within 2 % of the best are equal; the ring's latency decides among them."""

TRIED = 12
"""Spans whose flow is worked out, those that help the weakest layers most."""


@dataclass(frozen=True, slots=True)
class Device:
    """What one machine can do. `per_layer_s`, `fixed_s`: decode, measured. `capacity`: layers that fit its memory."""

    per_layer_s: float
    capacity: int
    fixed_s: float = 0.0

    def __post_init__(self) -> None:
        if self.per_layer_s <= 0.0 or self.capacity < 0 or self.fixed_s < 0.0:
            raise ValueError("per_layer_s is positive, capacity and fixed_s are not negative")

    def tokens_per_s(self, layers: int) -> float:
        """Throughput of a span of `layers` layers, one token at a time."""
        return 1.0 / (self.fixed_s + layers * self.per_layer_s)

    def holding(self, span: Span) -> Held:
        """This device with `span`, as the swarm's flow sees it."""
        return Held(span, len(span) * self.tokens_per_s(len(span)))


@dataclass(frozen=True, slots=True)
class Preview:
    """What joining with `span` would do. Tokens a second of the whole swarm (0 where a layer is missing), missing
    layers, and the token time of the best ring through the span, where it was asked for.
    """

    span: Span
    before_per_s: float
    after_per_s: float
    missing_before: int
    missing_after: int
    ring_s: float | None = None

    def __str__(self) -> str:
        ring = ""
        if self.ring_s is not None:
            found = f"{self.ring_s * 1e3:.1f} ms a token" if self.ring_s < float("inf") else "none yet"
            ring = f", best ring then: {found}"
        return (
            f"layers {self.span}: the swarm could make {self.before_per_s:.2f} → {self.after_per_s:.2f} tokens/s, "
            f"missing layers {self.missing_before} → {self.missing_after}{ring}"
        )


# --- a fresh fleet --------------------------------------------------------------------------------------------------


def split_layers(costs: Sequence[float], head_cost: float, devices: Sequence[Device]) -> tuple[Span | None, ...]:
    """Spans for `devices` in ring order such that the slowest stage is as quick as it can be; None: not needed.

    `costs`: relative cost of each layer (1 for an ordinary one), `head_cost` that of norm, LM head and sampling, which
    whoever holds the last layer pays. Raises ValueError where the layers do not fit into the memory of all.
    """
    if sum(device.capacity for device in devices) < len(costs):
        room = sum(device.capacity for device in devices)
        raise ValueError(f"{len(costs)} layers do not fit: the devices hold {room} together")
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(costs, dtype=np.float64))])
    # The optimum is the time of some device for some run of layers: bisect over exactly these times.
    times = np.unique(np.concatenate([_stage_times(sums, head_cost, device) for device in devices]))
    low, high = 0, len(times) - 1
    while low < high:
        middle = (low + high) // 2
        if _filled(sums, head_cost, devices, float(times[middle])) is not None:
            high = middle
        else:
            low = middle + 1
    spans = _filled(sums, head_cost, devices, float(times[low]))
    if spans is None:
        raise AssertionError("the largest stage time always suffices")
    return spans


def fastest_fleet(layers: int, devices: Sequence[Device], hop_s: float) -> tuple[int, ...]:
    """How many layers each device should run so that one stream is fastest; 0: it would make the ring slower.

    Exact: bounded knapsack over (device, layers placed). Every stage costs its fixed time and one hop, except that a
    ring of one stage has no hop. Raises ValueError where the layers do not fit.
    """
    best = np.concatenate([[0.0], np.full(layers, np.inf)])
    taken: list[Ints] = []
    for device in devices:
        counts = np.arange(min(device.capacity, layers) + 1)
        price = np.where(counts > 0, hop_s + device.fixed_s + counts * device.per_layer_s, 0.0)
        options = np.full((len(counts), layers + 1), np.inf)
        for count in counts:
            options[count, count:] = best[: layers + 1 - count] + price[count]
        taken.append(options.argmin(axis=0))
        best = options.min(axis=0)
    alone = [1.0 / device.tokens_per_s(layers) if device.capacity >= layers else np.inf for device in devices]
    if not np.isfinite(best[layers]):
        raise ValueError(f"{layers} layers do not fit into these devices")
    if min(alone) <= best[layers]:
        return tuple(layers if at == int(np.argmin(alone)) else 0 for at in range(len(devices)))
    left, plan = layers, []
    for choice in reversed(taken):
        plan.append(int(choice[left]))
        left -= plan[-1]
    return tuple(reversed(plan))


def turning_points(spans: Sequence[Span], per_layer_s: Sequence[float]) -> tuple[Span, ...]:
    """Cut overlapping `spans`, in ring order, so that each layer is run once, by the quicker of its holders.

    Every device keeps at least one layer. Exact, by a programme over (device, cut). Raises ValueError where the spans
    do not follow one another without a hole.
    """
    first, last = spans[0].start, spans[-1].end
    cost = np.full(last + 1, np.inf)
    cost[first] = 0.0
    origins: list[Ints] = []
    for span, each in zip(spans, per_layer_s, strict=True):
        reached, origin = np.full(last + 1, np.inf), np.zeros(last + 1, dtype=np.int64)
        for cut in range(span.start + 1, min(span.end, last) + 1):
            begin = np.arange(span.start, cut)
            total = cost[begin] + (cut - begin) * each
            origin[cut], reached[cut] = begin[total.argmin()], total.min()
        cost = reached
        origins.append(origin)
    if not np.isfinite(cost[last]):
        raise ValueError("the spans do not follow one another without a hole")
    end, cuts = last, []
    for origin in reversed(origins):
        cuts.append(Span(int(origin[end]), end))
        end = cuts[-1].start
    return tuple(reversed(cuts))


def _stage_times(sums: Floats, head_cost: float, device: Device) -> Floats:
    ends = np.arange(len(sums))
    runs = [
        sums[ends] - sums[start] + np.where(ends == len(sums) - 1, head_cost, 0.0) for start in range(len(sums) - 1)
    ]
    work = np.concatenate([run[start + 1 :] for start, run in enumerate(runs)])
    times: Floats = device.fixed_s + work * device.per_layer_s
    return times


def _filled(
    sums: Floats, head_cost: float, devices: Sequence[Device], limit_s: float
) -> tuple[Span | None, ...] | None:
    """Greedy: each device in turn takes all it can within `limit_s`. None where the end is not reached.

    Taking more never hurts those who come later, so greedy reaches the end whenever anything does. The head's cost can
    keep a device from taking the last layer alone, which the next one then takes.
    """
    total, at = len(sums) - 1, 0
    spans: list[Span | None] = []
    for device in devices:
        end = at
        while end < min(total, at + device.capacity):
            work = sums[end + 1] - sums[at] + (head_cost if end + 1 == total else 0.0)
            if device.fixed_s + work * device.per_layer_s > limit_s * (1.0 + 1e-12):
                break
            end += 1
        spans.append(Span(at, end) if end > at else None)
        at = end
    return tuple(spans) if at == total else None


# --- one node -------------------------------------------------------------------------------------------------------


def holders(table: ServiceTable, without: str = "") -> list[Held]:
    """What serving and joining services hold, leaving out the peer `without`.

    Joining nodes count, so that a crowd that starts together does not pile up on one hole. Leaving ones do not.
    """
    found = []
    for service, address, serving in zip(table.services, table.addresses, table.live, strict=True):
        if serving and address.peer != without:
            each_s = service.measured.decode_s + service.measured.fixed_s
            span = service.span
            found.append(Held(span, len(span) / max(each_s, 1e-6)))
    return found


def coverage(layers: int, held: Sequence[Held]) -> Floats:
    """Summed tokens/s per layer, were every visit the whole span: length `layers`, 0 where nobody holds a layer."""
    total = np.zeros(layers)
    for one in held:
        total[one.span.start : one.span.end] += one.layers_per_s / len(one.span)
    return total


def choose_span(
    layers: int,
    others: Sequence[Held],
    device: Device,
    ring_s: Callable[[Span], float] | None = None,
    tie_break: int = 0,
) -> Preview:
    """The span a joining device should hold, given what the `others` hold.

    As few missing layers as possible; then, among the spans that help weak layers most, the one with which the swarm
    makes most tokens a second; near-ties by the ring: `ring_s` gives the token time of the best ring if the device held
    a span. What is still equal goes by `tie_break`, an integer that differs between nodes, so that equal joiners spread
    instead of stampeding. Raises ValueError for a device that holds no layer.
    """
    if device.capacity < 1 or layers < 1:
        raise ValueError("the device does not hold a single layer")
    length = min(device.capacity, layers)
    now = coverage(layers, others)
    spans = [Span(start, start + length) for start in range(layers - length + 1)]
    missing = {span: _missing_with(now, span) for span in spans}
    fewest = min(missing.values())
    spans = [span for span in spans if missing[span] == fewest]
    weakness = {span: _weakness(now, device, span) for span in spans}
    spans.sort(key=lambda span: (weakness[span], (span.start + tie_break) % layers))
    rates = {span: tokens_per_s(layers, [*others, device.holding(span)]) for span in spans[:TRIED]}
    best = max(rates.values())
    near = [span for span, rate in rates.items() if rate >= NEAR_TIE * best]
    if ring_s is None:
        chosen, token_s = near[0], None
    else:
        token_s, _, chosen = min((ring_s(span), at, span) for at, span in enumerate(near))
    before = tokens_per_s(layers, others) if others else 0.0
    return Preview(chosen, before, rates[chosen], int((now <= 0.0).sum()), fewest, token_s)


def should_move(layers: int, others: Sequence[Held], device: Device, current: Span, proposed: Span) -> bool:
    """True where a serving device should leave `current` for `proposed`. `others`: the swarm without it.

    Only where the swarm gains a tenth, or a missing layer is covered, and never where a layer that is held now
    would lose its last replica: no session loses its ring to a move.
    """
    if current == proposed:
        return False
    now, then = (coverage(layers, [*others, device.holding(span)]) for span in (current, proposed))
    if bool(((now > 0.0) & (then <= 0.0)).any()):
        return False
    if bool((now <= 0.0).any()):
        return int((then <= 0.0).sum()) < int((now <= 0.0).sum())
    before, after = (tokens_per_s(layers, [*others, device.holding(span)]) for span in (current, proposed))
    return after >= MOVE_GAIN * before


def _missing_with(now: Floats, span: Span) -> int:
    """Layers that nobody holds once `span` is held."""
    return int((now <= 0.0).sum() - (now[span.start : span.end] <= 0.0).sum())


def _weakness(now: Floats, device: Device, span: Span) -> float:
    """Sum over layers of seconds per token: falls most where a weak layer is helped. Missing layers count alike."""
    after = now.copy()
    after[span.start : span.end] += device.tokens_per_s(len(span))
    return round(float((1.0 / after[after > 0.0]).sum()), 9)
