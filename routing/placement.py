"""Which span a node should hold: for a fresh fleet, for one that joins, and whether one that serves should move.

Knows measured speeds, memory in layers, and what the others hold. Refuses to move anybody: it returns advice, each node
decides for itself, and nobody re-tiles a survivor.

- :func:`split_layers`: a fresh fleet in ring order. Water-filling ``min(capacity_i, λ · speed_i)`` on measured decode
  speed (as Parallax does with FLOPs; decode is bound by memory bandwidth, so speed is measured decode), made exact for
  whole layers in a fixed order: the least λ for which greedy filling reaches the end. It minimises the slowest stage,
  which is what bounds a full pipeline.
- :func:`fastest_fleet`: which devices to use at all when one stream's latency counts. Devices that would make the ring
  slower get nothing (the observation is prima.cpp's). Exact, a bounded knapsack.
- :func:`choose_span`: a joining node goes where the summed throughput is weakest (Petals' rule), its length included,
  near-ties decided by the ring they make.
- :func:`should_move`: Petals' rule of a third, and never where a layer would lose its last replica.
- :func:`turning_points`: where consecutive stages overlap, the cut between them, so that each may drop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.routing.latency import Floats, Ints
from paceline.routing.view import ServiceTable
from paceline.wire.ids import Span

MOVE_GAIN = 4.0 / 3.0
"""A serving node moves only where the swarm's weakest layer would gain a third."""

NEAR_TIE = 0.95
"""Spans whose weakest layer ends within 5 % of the best are equal; the ring's latency decides among them."""


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


@dataclass(frozen=True, slots=True)
class Preview:
    """What joining with `span` would do. Throughputs of the weakest layer in tokens/s, 0 where a layer is missing."""

    span: Span
    weakest_before: float
    weakest_after: float
    missing_before: int
    missing_after: int
    ring_s: float | None

    def __str__(self) -> str:
        ring = "" if self.ring_s is None else f", best ring through it {self.ring_s * 1e3:.1f} ms a token"
        return (
            f"layers {self.span}: weakest layer {self.weakest_before:.2f} → {self.weakest_after:.2f} tokens/s, "
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


def throughput(table: ServiceTable, without: str = "") -> Floats:
    """Summed tokens/s of serving and joining services per layer, leaving out the peer `without`.

    Joining nodes count, so that a crowd that starts together does not pile up on one hole.
    """
    total = np.zeros(table.layers)
    for service, address in zip(table.services, table.addresses, strict=True):
        if address.peer != without:
            each_s = service.measured.decode_s + service.measured.fixed_s
            total[service.start : service.end] += 1.0 / max(each_s, 1e-6)
    return total


def choose_span(
    others: Floats, device: Device, ring_s: Callable[[Span], float] | None = None, tie_break: int = 0
) -> Preview:
    """The span a joining device should hold, given `others`' tokens/s per layer.

    First as few missing layers as possible, then the weakest layer as strong as possible, then (near-ties) the ring:
    `ring_s` gives the token time of the best ring if the device held a span. Without it, longer spans win, as fewer
    hops are faster. What is still equal goes by `tie_break`, an integer that differs between nodes, so that equal
    joiners spread instead of stampeding. Raises ValueError for a device that holds no layer.
    """
    layers = len(others)
    if device.capacity < 1 or layers < 1:
        raise ValueError("the device does not hold a single layer")
    options = [
        _judged(others, device, Span(start, start + n))
        for n in _lengths(device, layers)
        for start in range(layers - n + 1)
    ]
    fewest = min(option.missing_after for option in options)
    options = [option for option in options if option.missing_after == fewest]
    strongest = max(option.weakest_after for option in options)
    near = [option for option in options if option.weakest_after >= NEAR_TIE * strongest]
    potential = {option.span: _weakness(others, device, option.span) for option in near}
    near.sort(key=lambda option: (potential[option.span], -len(option.span), (option.span.start + tie_break) % layers))
    if ring_s is None:
        return near[0]
    timed = [(ring_s(option.span), at, option) for at, option in enumerate(near[:8])]
    token_s, _, best = min(timed, key=lambda row: row[:2])
    return Preview(best.span, best.weakest_before, best.weakest_after, best.missing_before, best.missing_after, token_s)


def should_move(others: Floats, device: Device, current: Span, proposed: Span) -> bool:
    """True where a serving device should leave `current` for `proposed`. `others`: the swarm without it.

    Only where the weakest layer gains a third, or a missing layer is covered, and never where a layer that is held now
    would lose its last replica: no session loses its ring to a move.
    """
    if current == proposed:
        return False
    now, then = _with(others, device, current), _with(others, device, proposed)
    if bool(((now > 0.0) & (then <= 0.0)).any()):
        return False
    if bool((now <= 0.0).any()):
        return int((then <= 0.0).sum()) < int((now <= 0.0).sum())
    return float(then.min()) >= MOVE_GAIN * float(now.min())


def _lengths(device: Device, layers: int) -> range:
    return range(1, min(device.capacity, layers) + 1)


def _with(others: Floats, device: Device, span: Span) -> Floats:
    total = others.copy()
    total[span.start : span.end] += device.tokens_per_s(len(span))
    return total


def _judged(others: Floats, device: Device, span: Span) -> Preview:
    after = _with(others, device, span)
    missing = int((others <= 0.0).sum()), int((after <= 0.0).sum())
    return Preview(span, float(others.min()), float(after.min()), *missing, None)


def _weakness(others: Floats, device: Device, span: Span) -> float:
    """Sum over layers of seconds per token: falls most where a weak layer is helped. Missing layers count alike."""
    after = _with(others, device, span)
    return round(float((1.0 / after[after > 0.0]).sum()), 9)
