"""What is asked of routing, and what it answers: RingRequest, RingPlan, and the plan in words.

Knows values only. Refuses to know how a ring is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from paceline.routing.cost import CostTerms
from paceline.wire import limits
from paceline.wire.ids import Span
from paceline.wire.messages import PeerAddress, Stage

Objective = Literal["latency", "throughput", "fair"]
"""What a ring is chosen for (choice.py): the least time per token, the swarm's throughput, or equal use of equals."""

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, slots=True)
class RingRequest:
    """Constraints and sizes of one session.

    `positions`: KV the session will need, prompt and answer together. `numerics`: the class the ring must have; None
    takes the cheapest single class; `mix_numerics` allows stages of different classes, which gives up bit-exact
    repair. `trusted`: the only peers allowed, None for all. `regions`: the only regions allowed, as nodes' owners name
    them. `ends`: the only peers that may hold the first and the last layer, so that nobody else sees a token; one of
    them may ride twice, at both ends. `chunk`: positions per prefill frame. `seed`: 64 bits, what objectives that draw
    a ring draw it from; one session keeps one.
    """

    revision: bytes
    positions: int = 1
    prompt: int = 1
    numerics: str | None = None
    mix_numerics: bool = False
    trusted: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    regions: frozenset[str] | None = None
    ends: frozenset[str] | None = None
    max_stages: int = limits.MAX_STAGES
    chunk: int = 512
    terms: CostTerms = field(default_factory=CostTerms)
    objective: Objective = "latency"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_stages < 1 or self.chunk < 1 or self.prompt < 1 or self.positions < 1:
            raise ValueError("max_stages, chunk, prompt and positions are at least 1")
        if self.objective not in OBJECTIVES or not 0 <= self.seed < 1 << 64:
            raise ValueError(f"the objective is one of {', '.join(OBJECTIVES)}, the seed has 64 bits")

    @property
    def past(self) -> float:
        """Positions that a decode step attends to on average: the prompt, and half of what may be generated."""
        return self.prompt + max(0, self.positions - self.prompt) / 2.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """How a ring was drawn. `lot`: the total of its lots, the least of all lawful rings. `tokens_per_s`: what all rings
    together can make that it was drawn from, as far as offers say.
    """

    lot: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage with its share of the prediction, in seconds per token.

    `compute_s` includes fixed cost, penalties and, at the tail, the head's `tail_s`. `hop_s`: one way to the next
    stage with `upload_s` in it; the tail's is the way back to the head. `kept`: same peer and span as in the plan this
    one repairs, so that its KV survives. The rest is kept for repair and for the time to first token.
    """

    at: PeerAddress
    span: Span
    numerics: str
    compute_s: float
    tail_s: float
    hop_s: float
    upload_s: float
    entry_s: float
    prefill_s_per_position: float
    kept: bool = False

    @property
    def peer(self) -> str:
        return self.at.peer


@dataclass(frozen=True, slots=True)
class RingPlan:
    """A ring and what it is predicted to do. `token_s` is the sum of the stages' `compute_s` and `hop_s`."""

    model: str
    revision: bytes
    layers: int
    stages: tuple[PlannedStage, ...]
    token_s: float
    ttft_s: float
    request: RingRequest
    drawn: Drawn | None = None
    """None: it is the cheapest, not drawn."""

    @property
    def numerics(self) -> str:
        """The ring's numerics class, or its classes joined by ``+`` where the request allowed a mix."""
        return "+".join(sorted({stage.numerics for stage in self.stages}))

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(stage.peer for stage in self.stages)

    def route(self, standbys: Mapping[int, PeerAddress] | None = None) -> tuple[Stage, ...]:
        """The plan as the wire's route; `standbys` by stage index."""
        shadows = standbys or {}
        return tuple(
            Stage(stage.at, stage.span.start, stage.span.end, (shadows[at],) if at in shadows else ())
            for at, stage in enumerate(self.stages)
        )


def explain(plan: RingPlan, runner_up: RingPlan | Literal["unknown"] | None = "unknown") -> str:
    """The plan as a table for people: who runs what, where the time goes, and by how much the runner-up loses.

    `runner_up`: what :func:`paceline.routing.ring.runner_up` found, None where it found that there is none. Left out,
    nothing is claimed about other rings.
    """
    lines = [
        f"{plan.model} · revision {plan.revision.hex()[:12]} · {plan.numerics} · {len(plan.stages)} "
        f"{'stage' if len(plan.stages) == 1 else 'stages'}",
        f"{'':>3} {'peer':<16} {'layers':>9} {'compute ms':>11} {'hop ms':>9}  to",
    ]
    for at, stage in enumerate(plan.stages):
        following = plan.stages[(at + 1) % len(plan.stages)]
        lines.append(
            f"{at:>3} {_short(stage.peer):<16} {stage.span!s:>9} {stage.compute_s * 1e3:>11.3f}"
            f" {stage.hop_s * 1e3:>9.3f}  {_short(following.peer)}{' (kept)' if stage.kept else ''}"
        )
    compute, hops = sum(stage.compute_s for stage in plan.stages), sum(stage.hop_s for stage in plan.stages)
    lines.append(f"{'':>3} {'sum':<16} {'0:' + str(plan.layers):>9} {compute * 1e3:>11.3f} {hops * 1e3:>9.3f}")
    lines.append(
        f"predicted {plan.token_s * 1e3:.3f} ms a token ({_rate(plan.token_s)} tokens/s), first token after "
        f"{plan.ttft_s * 1e3:.0f} ms for {plan.request.prompt} positions; "
        f"at a past of {plan.request.past:.0f} positions"
    )
    if runner_up != "unknown":
        lines.append(_comparison(plan, runner_up))
    return "\n".join(lines)


def _comparison(plan: RingPlan, runner_up: RingPlan | None) -> str:
    if runner_up is None:
        return "chosen because none of its peers can be done without: other rings miss layers or break a constraint"
    riders = ", ".join(f"{_short(stage.peer)} {stage.span}" for stage in runner_up.stages)
    loss = runner_up.token_s - plan.token_s
    compute = sum(s.compute_s for s in runner_up.stages) - sum(s.compute_s for s in plan.stages)
    share = f" ({abs(100.0 * loss / plan.token_s):.1f} %)" if plan.token_s > 0.0 else ""
    slower = "slower" if loss >= 0.0 else "faster"
    by = (
        f"{runner_up.token_s * 1e3:.3f} ms, {slower} by {abs(loss) * 1e3:.3f} ms{share}: "
        f"compute {compute * 1e3:+.3f} ms, hops {(loss - compute) * 1e3:+.3f} ms"
    )
    if plan.drawn is None:
        return f"chosen because it is the fastest ring; runner-up {riders}: {by}"
    among = "all rings" if plan.request.objective == "throughput" else "rings about as fast as the fastest"
    return (
        f"drawn for {plan.request.objective} among {among}, by what each rider can carry (all of these together: "
        f"{plan.drawn.tokens_per_s:.1f} tokens/s); without one of its riders the lot falls on {riders}: {by}"
    )


def _rate(token_s: float) -> str:
    return f"{1.0 / token_s:.1f}" if token_s > 0.0 else "unbounded"


def _short(peer: str) -> str:
    return peer if len(peer) <= 16 else f"{peer[:6]}…{peer[-8:]}"
