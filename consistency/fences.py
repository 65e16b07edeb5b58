"""The newest epoch that a node has installed for each session, remembered after the session was freed.

Without it, a session that its newer owner has ended could be opened again by the older one. Bounded: the least recently
noted sessions are forgotten (invariant 7); a process that restarts forgets all, and then an older owner may go on as if
the newer had never been (docs/protocol.md says why that is harmless).
"""

from __future__ import annotations

from collections import OrderedDict

MOST = 4_096


class Fences:
    """See the module's docstring."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._epochs: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._epochs)

    def note(self, session: bytes, epoch: int) -> None:
        """`epoch` of `session` was installed here."""
        self._epochs[session] = max(epoch, self._epochs.get(session, 0))
        self._epochs.move_to_end(session)
        while len(self._epochs) > self._most:
            self._epochs.popitem(last=False)

    def newer(self, session: bytes, epoch: int) -> int | None:
        """The epoch that fences `epoch`, or None where there is none."""
        known = self._epochs.get(session)
        return known if known is not None and known > epoch else None
