"""What a session's owner is asked for, what it may wait, and what it says of a repair. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from paceline.consistency.recovery import Tier
from paceline.wire.ids import Revision, SessionId
from paceline.wire.sampling import SamplingParams


class Phase(Enum):
    NEW = "new"
    RIDING = "riding"
    BROKEN = "broken"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """Deadlines in seconds. Progress: max(`progress_floor_s`, `progress_factor` × the mean interval of tokens),
    doubled at each stall in a row; where more than one position must be prefilled first, `first_token_s` +
    `per_position_s` × positions. A session ends `give_up_s` + `per_position_s` × log after its last token.
    """

    first_token_s: float = 10.0
    per_position_s: float = 0.05
    progress_floor_s: float = 3.0
    progress_factor: float = 10.0
    give_up_s: float = 60.0
    retry_route_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Failover:
    """One repair, for the audit: at log index `index`, epoch number `epoch`, who was lost, how it was mended."""

    index: int
    epoch: int
    lost: tuple[str, ...]
    reason: str
    tier: Tier
    kept: int
    stall_s: float


@dataclass(frozen=True, slots=True)
class Request:
    """What a session is asked to generate. `prompt` has at least one id; the log ends at `max_positions` tokens."""

    session: SessionId
    revision: Revision
    model: str
    prompt: tuple[int, ...]
    max_positions: int
    sampling: SamplingParams
    chunk: int = 512
    trace: bool = False
    priority: int = 0

    def finish_of(self, log: Sequence[int]) -> str:
        """How a complete `log` ended: "stop" or "length". Empty where it goes on."""
        if len(log) > len(self.prompt) and log[-1] in self.sampling.stop_ids:
            return "stop"
        return "length" if len(log) >= self.max_positions else ""
