"""A token bucket for bytes. Pure: `now` is an argument."""

from __future__ import annotations


class Rate:
    """At most `bytes_per_s` on average, in bursts of a tenth of a second; 0: no limit."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._level = 0.0
        self._then = 0.0

    def wait_s(self, now: float) -> float:
        """How long until something may be sent."""
        self._refill(now)
        # Half a byte of slack: a rest of a rounding error would be a wait too short to pass.
        return 0.0 if self._level > -0.5 or not self.bytes_per_s else -self._level / self.bytes_per_s

    def spend(self, n: int, now: float) -> None:
        """`n` bytes leave. The level may go below zero: one piece is never cut."""
        if self.bytes_per_s:
            self._refill(now)
            self._level -= n

    def _refill(self, now: float) -> None:
        if self.bytes_per_s:
            most = self.bytes_per_s / 10
            self._level = min(most, self._level + max(0.0, now - self._then) * self.bytes_per_s)
            self._then = now
