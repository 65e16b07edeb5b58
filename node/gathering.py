"""Whether a head should wait a moment for sessions that are about to come round, so that they ride on together.

A decode step reads all weights whatever its batch, so sessions in one batch cost little more than one alone; and a
group that has formed stays together, because the tail sends its tokens back in one write. So waiting costs a fraction
of one trip, once, and pays on every trip after. Only sessions of the same ring are gathered: their trips take equally
long, so no one is waited for twice. Pure: knows times and names, decides nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass

PATIENCE = 0.6
"""Of a trip: with more than half a trip, any two sessions of a ring meet within one."""

SLACK = 0.15
"""Of a trip: how much later than usual a session may come and still be waited for."""


@dataclass(slots=True)
class _Rider:
    ring: Hashable
    left_at: float
    came_at: float | None = None
    trip_s: float = 0.0


class Gathering:
    """Sessions that decode through this head, and when they come round. Times in seconds of one clock."""

    def __init__(self) -> None:
        self._riders: dict[Hashable, _Rider] = {}

    def left(self, session: Hashable, ring: Hashable, now: float) -> None:
        """A decode step of `session` has been sent down its `ring`."""
        rider = self._riders.get(session)
        if rider is None or rider.ring != ring:
            self._riders[session] = _Rider(ring, now)
        else:
            rider.left_at, rider.came_at = now, None

    def came(self, session: Hashable, now: float) -> None:
        """The tail's token for `session` is here."""
        rider = self._riders.get(session)
        if rider is not None and rider.came_at is None:
            trip = now - rider.left_at
            rider.came_at = now
            rider.trip_s = trip if rider.trip_s == 0.0 else 0.7 * rider.trip_s + 0.3 * trip

    def keep(self, sessions: Collection[Hashable]) -> None:
        """Forget all others."""
        for session in self._riders.keys() - sessions:
            del self._riders[session]

    def hold_until(self, ready: Iterable[Hashable], full: int, now: float) -> float:
        """Until when the `ready` sessions had better wait; `now` or earlier: not at all. `full`: no larger groups."""
        until = now
        rings: dict[Hashable, list[_Rider]] = {}
        for session in ready:
            rider = self._riders.get(session)
            if rider is None or rider.came_at is None:
                return now  # somebody's first step: nothing is known of his trip
            rings.setdefault(rider.ring, []).append(rider)
        for ring, riders in rings.items():
            if len(riders) < full:
                until = max(until, self._worth(ring, riders, now))
        return until

    def _worth(self, ring: Hashable, ready: list[_Rider], now: float) -> float:
        trip = max(rider.trip_s for rider in ready)
        since = min(rider.came_at for rider in ready if rider.came_at is not None)
        patience = since + PATIENCE * trip
        expected = [
            rider.left_at + rider.trip_s
            for rider in self._riders.values()
            if rider.ring == ring and rider.came_at is None and rider.trip_s > 0.0
        ]
        slack = SLACK * trip
        return max((at + slack for at in expected if now < at + slack and at <= patience), default=now)
