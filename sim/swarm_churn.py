"""A fleet of uneven machines that come and go, and the rule by which each finds its span.

Knows devices, rules and the order of events; seconds between them are drawn. Refuses to know sessions and latency: what
is weighed is the tokens a second that the spans could make together (routing/flow.py), against what no placement of the
same devices could pass. Every node decides for itself, one after the other, as jitter has them do.

The rules compared:

- *ours*: `routing.placement.choose_span` and `should_move`.
- *Petals*: all that fits, where the summed throughput of the covered blocks, sorted, is least; moves where the weakest
  block would gain a third (Borzunov et al., "Distributed Inference and Fine-tuning of Large Language Models Over The
  Internet", 2023, section 3.2; written from the paper).
- *in turn*: all that fits, beginning where the one before ended, whatever anybody's speed. Nobody moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paceline.routing.flow import Held, bound_per_s, tokens_per_s
from paceline.routing.placement import MOVE_GAIN, Device, choose_span, coverage, should_move
from paceline.sim.chance import Chance
from paceline.sim.internet import normal
from paceline.wire.ids import Span

SETTLING_S = 10.0
"""Until those that move after an event serve again."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """`layers` of the model; `size`: machines at first, and on average; `events`: arrivals and departures after that,
    `pause_s` apart on average.
    """

    layers: int
    size: int
    events: int
    pause_s: float = 60.0


@dataclass(slots=True)
class Report:
    """What became of one fleet under one rule. Shares are of the bound, weighted by time; `whole` where every visit
    runs the whole span and nobody leaves early: the weakest layer's summed throughput.
    """

    shares: list[tuple[float, float]] = field(default_factory=list)
    whole: list[tuple[float, float]] = field(default_factory=list)
    departures: int = 0
    moves: int = 0
    moved_layers: int = 0
    gaps: int = 0
    """Layers that lost their last holder although there were two before."""

    @property
    def share(self) -> float:
        """Mean share of the bound."""
        return _mean(self.shares)

    @property
    def whole_share(self) -> float:
        """Mean share of the bound without early exit."""
        return _mean(self.whole)

    @property
    def worst(self) -> float:
        """The least share that lasted."""
        return min(value for value, weight in self.shares if weight > SETTLING_S)


@dataclass(slots=True)
class Swarm:
    """Who holds what, by number."""

    layers: int
    devices: dict[int, Device] = field(default_factory=dict)
    spans: dict[int, Span] = field(default_factory=dict)

    def held(self, without: int = -1) -> list[Held]:
        """Everybody's span, but one's."""
        return [self.devices[who].holding(span) for who, span in self.spans.items() if who != without]

    def tokens_per_s(self) -> float:
        """What it can make."""
        return tokens_per_s(self.layers, self.held()) if self.spans else 0.0

    def bound_per_s(self) -> float:
        """What no placement of these devices can pass."""
        rooms = [(device, min(device.capacity, self.layers)) for device in self.devices.values()]
        return bound_per_s(self.layers, [(n, device.holding(Span(0, n)).layers_per_s) for device, n in rooms])

    def replicas(self) -> list[int]:
        """Holders per layer."""
        return [sum(layer in span for span in self.spans.values()) for layer in range(self.layers)]


Join = Callable[[Swarm, Device, int], Span]
Move = Callable[[Swarm, int], Span | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a newcomer chooses, and where a member would rather be (None: where it is)."""

    name: str
    join: Join
    move: Move


def drawn_device(chance: Chance, layers: int) -> Device:
    """Speeds over a factor of about 25 (log-normal, median 1 ms a layer), room for 2 layers up to all of them
    (log-normal, median a fifth), 0.2 ms a visit.
    """
    room = int(layers / 5 * math.exp(0.6 * normal(chance)))
    return Device(1e-3 * math.exp(0.8 * normal(chance)), min(max(room, 2), layers), 2e-4)


def run(fleet: Fleet, rule: Rule, seed: int) -> Report:
    """One fleet's life under one rule. The same seed draws the same machines and events for every rule."""
    chance, order = Chance(seed), Chance(seed + 1_000_003)
    swarm, report = Swarm(fleet.layers), Report()
    for who in range(fleet.size):
        _arrive(swarm, rule, drawn_device(chance, fleet.layers), who)
    _settle(swarm, rule, report, order)
    for event in range(fleet.events):
        leaves = chance.yes(len(swarm.devices) / (2.0 * fleet.size))
        place, pause_s = chance.unit(), -fleet.pause_s * math.log(1.0 - chance.unit())
        newcomer = drawn_device(chance, fleet.layers)
        before = swarm.replicas()
        if leaves:
            who = sorted(swarm.devices)[int(place * len(swarm.devices))]
            del swarm.devices[who], swarm.spans[who]
            report.departures += 1
        else:
            _arrive(swarm, rule, newcomer, fleet.size + event)
        _weigh(swarm, report, min(SETTLING_S, pause_s))
        report.gaps += _gaps(before, swarm.replicas())
        _settle(swarm, rule, report, order)
        _weigh(swarm, report, max(pause_s - SETTLING_S, 0.0))
    return report


def _arrive(swarm: Swarm, rule: Rule, device: Device, who: int) -> None:
    span = rule.join(swarm, device, who)
    swarm.devices[who], swarm.spans[who] = device, span


def _settle(swarm: Swarm, rule: Rule, report: Report, order: Chance) -> None:
    """Everybody looks once, in a drawn order, at the swarm as it is then."""
    waiting = sorted(swarm.spans)
    while waiting:
        who = waiting.pop(order.below(len(waiting)))
        span = rule.move(swarm, who)
        if span is None:
            continue
        before, old = swarm.replicas(), swarm.spans[who]
        swarm.spans[who] = span
        report.gaps += _gaps(before, swarm.replicas())
        report.moves += 1
        report.moved_layers += sum(layer not in old for layer in range(span.start, span.end))


def _weigh(swarm: Swarm, report: Report, seconds: float) -> None:
    bound = swarm.bound_per_s()
    if bound > 0.0 and seconds > 0.0:
        report.shares.append((swarm.tokens_per_s() / bound, seconds))
        report.whole.append((float(coverage(swarm.layers, swarm.held()).min()) / bound, seconds))


def _mean(values: Sequence[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)


def _gaps(before: Sequence[int], after: Sequence[int]) -> int:
    return sum(was >= 2 and now == 0 for was, now in zip(before, after, strict=True))


# --- rules ----------------------------------------------------------------------------------------------------------


def _join_ours(swarm: Swarm, device: Device, who: int) -> Span:
    return choose_span(swarm.layers, swarm.held(), device, tie_break=who).span


def _move_ours(swarm: Swarm, who: int) -> Span | None:
    held = swarm.held()
    # Nobody can gain a tenth where the swarm already makes ten elevenths of what all its machines could.
    if swarm.tokens_per_s() * MOVE_GAIN > sum(one.layers_per_s for one in held) / swarm.layers:
        return None
    others, device, current = swarm.held(without=who), swarm.devices[who], swarm.spans[who]
    span = choose_span(swarm.layers, others, device, tie_break=who).span
    return span if should_move(swarm.layers, others, device, current, span) else None


def _weakest(swarm: Swarm, device: Device, others: Sequence[Held]) -> Span:
    now, length = coverage(swarm.layers, others), min(device.capacity, swarm.layers)
    starts = range(swarm.layers - length + 1)
    start = min(starts, key=lambda at: (sorted(now[at : at + length].tolist()), at))
    return Span(start, start + length)


def _join_petals(swarm: Swarm, device: Device, who: int) -> Span:
    return _weakest(swarm, device, swarm.held())


def _move_petals(swarm: Swarm, who: int) -> Span | None:
    device, current, others = swarm.devices[who], swarm.spans[who], swarm.held(without=who)
    span = _weakest(swarm, device, others)
    now, then = (float(coverage(swarm.layers, [*others, device.holding(it)]).min()) for it in (current, span))
    return span if span != current and then > now * 4.0 / 3.0 else None


def _join_in_turn(swarm: Swarm, device: Device, who: int) -> Span:
    length = min(device.capacity, swarm.layers)
    last = swarm.spans[max(swarm.spans)].end % swarm.layers if swarm.spans else 0
    start = min(last, swarm.layers - length)
    return Span(start, start + length)


RULES = (
    Rule("ours", _join_ours, _move_ours),
    Rule("Petals", _join_petals, _move_petals),
    Rule("in turn", _join_in_turn, lambda swarm, who: None),
)
