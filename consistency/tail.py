"""What a tail has drawn in one epoch: the events it keeps for an owner that missed some, the token that the head waits
for, and the log that penalties count over.

Knows indices and tokens. Refuses to know peers and links: stage.py decides who is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from paceline.consistency.inputs import Drawn
from paceline.consistency.invariants import require
from paceline.wire.messages import Finish, NextToken, OpenStage, TokenEvent

EVENTS_KEPT = 256
"""Token events a tail keeps for an owner whose link broke."""


class TailLog:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.history: list[int] = []
        self._events: deque[TokenEvent] = deque(maxlen=EVENTS_KEPT)
        self._withheld: NextToken | None = None

    @property
    def last(self) -> TokenEvent | None:
        """The newest event."""
        return self._events[-1] if self._events else None

    def drew(self, index: int) -> bool:
        """True where `index` is the last token that was drawn."""
        return self.last is not None and self.last.index == index

    def begin(self, m: OpenStage, length: int, lengths: tuple[int, ...]) -> TokenEvent | None:
        """A new epoch, begun with `length` positions: the token that its owner lacks, where those led to it before."""
        last = self.last if length == m.known and self.drew(m.known) else None
        self._events.clear()
        self._withheld = None
        del self.history[m.known :]
        if last is None:
            return None
        return self.draw(m, m.branch, m.known, Drawn(last.token, last.logprob, last.top), lengths)

    def roll_back(self, start: int) -> None:
        """Positions from `start` on are replaced: what was drawn after them never was. Token `start` itself stands."""
        while self._events and self._events[-1].index > start:
            self._events.pop()
        del self.history[start + 1 :]
        if self._withheld is not None and self._withheld.index > start:
            self._withheld = None

    def learn(self, start: int, ids: Sequence[int]) -> None:
        """``log[start : start + len(ids)]``, from the owner. A late copy undoes nothing that was drawn since."""
        if start <= len(self.history) < start + len(ids):
            self.history[start:] = ids

    def draw(self, config: OpenStage, branch: int, index: int, drawn: Drawn, lengths: tuple[int, ...]) -> TokenEvent:
        """Token `index` was drawn; `lengths` is the clock, as the event carries it."""
        require(3, self.last is None or self.last.index < index, f"index {index} was drawn before")
        finish: Finish = ""
        if drawn.token in config.sampling.stop_ids:
            finish = "stop"
        elif index + 1 >= config.max_positions:
            finish = "length"
        event = TokenEvent(
            config.session, config.epoch, branch, index, drawn.token, finish, lengths, drawn.logprob, drawn.top
        )
        self._events.append(event)
        if len(self.history) == index:
            self.history.append(drawn.token)
        if not finish:
            self._withheld = NextToken(config.session, config.epoch, branch, index, drawn.token)
        return event

    def release(self) -> NextToken | None:
        """The token that the head waits for, once."""
        token, self._withheld = self._withheld, None
        return token

    def token_at(self, have: int) -> NextToken | None:
        """For a head that lacks token `have`: that, if it was the last drawn and the session goes on."""
        last = self.last
        if last is None or last.index != have or last.finish:
            return None
        return NextToken(last.session, last.epoch, last.branch, last.index, last.token)

    def events_from(self, have: int) -> list[TokenEvent]:
        """The kept events from index `have` on."""
        return [event for event in self._events if event.index >= have]
