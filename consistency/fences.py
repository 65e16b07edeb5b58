"""The newest epoch that a node has seen installed, or closed, for each session; remembered after the session was freed.

Without it, a session that its newer owner has ended could be opened again by the older one, or by a late copy of an
OpenStage. Bounded: the least recently noted sessions are forgotten (invariant 7). A process that restarts forgets all:
docs/protocol.md says what may happen then.
"""

from __future__ import annotations

from collections import OrderedDict

MOST = 4_096


class Fences:
    """See the module's docstring."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._epochs: OrderedDict[bytes, tuple[int, bool]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._epochs)

    def note(self, session: bytes, epoch: int, closed: bool = False) -> None:
        """`epoch` of `session` was installed here, or closed: then it is over, too."""
        self._epochs[session] = max((epoch, closed), self._epochs.get(session, (0, False)))
        self._epochs.move_to_end(session)
        while len(self._epochs) > self._most:
            self._epochs.popitem(last=False)

    def over(self, session: bytes, epoch: int) -> int | None:
        """The epoch that fences an OpenStage of `epoch`, or None where it may be installed."""
        known, closed = self._epochs.get(session, (0, False))
        return known if epoch < known or (closed and epoch == known) else None
