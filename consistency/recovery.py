"""How a broken ring is repaired: the recovery line, what each stage of the new route starts from, and its price.

Recovery line p: the greatest position that every survivor has reached and whose next token the owner holds. The owner
of a log of `known` tokens feeds position known - 1 again, so p ≤ known - 1; and the tail drew token known - 1 only
after every stage of that ring had applied positions [0, known - 1). So p = known - 1 from the first token on, and 0
before it. Nothing has to be asked before repairing. What a survivor holds behind p, up to `known`, it keeps (`kept`).

Tiers, best first: a *shadow* starts from p as a survivor does (it asks for what it lags); a *journal* replacement
starts from 0 and is fed by its upstream neighbour; *tokens* starts everybody from 0. A journal is never worse than
tokens: both move the same activations over the replacement's inbound hop and prefill its span, and tokens also does
so for every other stage. So tokens is taken only where a journal is short, and the estimate is for the audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from paceline.wire.messages import OpenStage, Stage


class Tier(Enum):
    """How the stages that were lost got their KV back."""

    NONE = "none"
    SHADOW = "shadow"
    JOURNAL = "journal"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """`lengths[k]`: KV that stage k of the new route starts from; `line`: the recovery line."""

    line: int
    lengths: tuple[int, ...]
    tier: Tier
    kept: int
    """Stages that recompute nothing."""


def recovery_line(known: int, prompt_length: int) -> int:
    """See the module's docstring: positions that all stages of a ring certainly hold."""
    return known - 1 if known > prompt_length else 0


def plan(old: Sequence[Stage], new: Sequence[Stage], line: int, *, from_tokens: bool = False) -> RepairPlan:
    """What each stage of `new` starts from, given the route `old` that broke at recovery line `line`.

    A survivor is the same peer with the same span; a promoted shadow was a standby of that span.
    """
    if from_tokens or not old or line == 0:
        return RepairPlan(0, (0,) * len(new), Tier.TOKENS if old else Tier.NONE, 0)
    riders = {(stage.at.peer, stage.start, stage.end) for stage in old}
    shadows = {(standby.peer, stage.start, stage.end) for stage in old for standby in stage.standbys}
    lengths: list[int] = []
    kept = promoted = 0
    for stage in new:
        who = (stage.at.peer, stage.start, stage.end)
        kept += who in riders
        promoted += who in shadows and who not in riders
        lengths.append(line if who in riders or who in shadows else 0)
    replaced = len(new) - kept - promoted
    tier = Tier.JOURNAL if replaced else Tier.SHADOW if promoted else Tier.NONE
    return RepairPlan(line, tuple(lengths), tier, kept)


def kept(m: OpenStage, end: int, journal_first: int, *, draws: bool) -> int:
    """Positions that stay in a stage whose span ended at `end` when `m` opens an epoch.

    The plan's number, and of a survivor also the one position in flight, which the recovery line leaves out: it follows
    from the owner's log as well. But a stage must still have what comes after the line to send on, so its journal
    begins at the line or before it, and a tail, which drew from that position, can say that token (again) (`draws`).
    """
    line = m.lengths[m.index] if m.route[m.index].end == end else 0
    goes_on = draws if m.index == len(m.route) - 1 else journal_first <= line
    return m.known if line and goes_on else line


def replay_estimate_s(line: int, row_bytes: int, uplink_bytes_per_s: float, prefill_s_per_position: float) -> float:
    """Seconds to rebuild one stage from its neighbour's journal: bytes ÷ bandwidth + prefill of its span."""
    transfer = line * row_bytes / uplink_bytes_per_s if uplink_bytes_per_s else 0.0
    return transfer + line * prefill_s_per_position
