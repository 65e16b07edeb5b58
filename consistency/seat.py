"""Where one process sits in a session's ring: who is before it, behind it, and beside those.

Knows one OpenStage. Knows nothing of what has happened since.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from paceline.wire.ids import PeerId
from paceline.wire.messages import OpenStage, PeerAddress, Stage


class Seat:
    """Stage `m.index` of `m.route`, taken by `me`: as its rider or, where `m.shadow`, as one of its standbys."""

    def __init__(self, m: OpenStage, me: PeerId) -> None:
        self.shadow = m.shadow
        self.is_head = m.index == 0
        self.is_tail = m.index == len(m.route) - 1
        self.head = m.route[0]
        self.upstream: Stage = m.route[m.index - 1]
        """The stage before this one; of a head, the tail."""
        self.next: Stage = m.route[(m.index + 1) % len(m.route)]
        self.ring = tuple(stage.at.peer for stage in m.route)
        """The peers of the route, head first."""
        self._me = me

    @cached_property
    def downstream(self) -> dict[str, PeerAddress]:
        """The next stage and its standbys, by peer; nobody behind a tail."""
        return {} if self.is_tail else _all_of(self.next)

    @cached_property
    def heads(self) -> dict[str, PeerAddress]:
        """The head and its standbys, by peer: who needs the tail's tokens."""
        return _all_of(self.head)

    @cached_property
    def neighbours(self) -> dict[str, str]:
        """Peers that this stage cannot do without, and what they are to it."""
        near = {self.upstream.at.peer: "the stage upstream", self.next.at.peer: "the stage downstream"}
        near.pop(self._me, None)
        return near

    def feeds_me(self, peer: PeerId) -> bool:
        """True for the stage whose frames, or whose tokens, come here."""
        return peer == self.upstream.at.peer


def _all_of(stage: Stage) -> dict[str, PeerAddress]:
    return {at.peer: at for at in (stage.at, *stage.standbys)}


@dataclass(slots=True)
class Asked:
    """What a stage has asked for in this epoch, so that it asks once; a new epoch begins a new one."""

    missing_from: int = -1
    """The last Nack's `have`."""
    history: bool = False
    repair: bool = False
    """The owner was told that the journal is short."""
    unsure: set[str] = field(default_factory=set)
    """Neighbours whose link fell, so that what was in flight may be lost."""
