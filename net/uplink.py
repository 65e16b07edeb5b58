"""How fast a peer's bytes arrive when it has many to send, and what others say of ours. Pure: time is an argument.

A sender that is about to write a large batch puts a mark in front of it (a Ping with `burst`, the bytes that follow at
once). Between the mark's arrival and the end of the burst the line was never idle, so the bytes heard in that time over
the time are a sample of what the way carries: of the sender's uplink, as a rule its narrowest part. No byte is sent for
the sake of measuring but the mark's. The receiver keeps the upper quartile of its latest samples (slow starts, and
stalls on the way, only make a burst look slow; a reader that was late for some makes them look quick), and tells it in
its Pongs. The sender takes the median of what its receivers say: who claims too much raises nothing as long as most do
not, and where two differ the lower counts.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low

from paceline.wire.ids import PeerId

BURST_BYTES = 128 * 1024
"""A batch so large is marked: a fast home uplink takes tens of milliseconds for it."""

MARK_EVERY_S = 1.0
"""On one link."""

SAMPLES, ENOUGH = 16, 3
"""Samples of one link that count, and how many there must be."""

LEAST_S = 0.001
"""A burst that took less was read all at once: it tells nothing."""

REMEMBER_S, MOST = 1800.0, 64
"""What a receiver said counts for so long; so many receivers are remembered."""


class Bursts:
    """What one link has heard: the receiving side."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._left = 0
        self._began = 0.0
        self._heard = 0

    def mark(self, burst: int, now: float, heard: int) -> None:
        """`burst` bytes of messages follow at once; the channel has heard `heard` bytes so far."""
        self._left, self._began, self._heard = burst, now, heard

    def message(self, size: int, now: float, heard: int) -> None:
        """A message of so many bytes is complete."""
        if not self._left:
            return
        self._left = max(0, self._left - size)
        spent = now - self._began
        # Most of the burst must have come after the mark was read, or the end of it is all that was timed.
        if not self._left and spent >= LEAST_S and heard - self._heard >= BURST_BYTES // 2:
            self._samples.append((heard - self._heard) / spent)

    @property
    def bytes_per_s(self) -> float:
        """0 before enough was heard."""
        if len(self._samples) < ENOUGH:
            return 0.0
        return sorted(self._samples)[(3 * len(self._samples)) // 4]


class Uplink:
    """What receivers say of this process: the sending side."""

    def __init__(self) -> None:
        self._told: dict[PeerId, tuple[float, float]] = {}

    def tell(self, peer: PeerId, bytes_per_s: float, now: float) -> None:
        """One receiver's figure; 0 says nothing."""
        if bytes_per_s > 0.0:
            self._told.pop(peer, None)
            self._told[peer] = bytes_per_s, now
            if len(self._told) > MOST:
                del self._told[next(iter(self._told))]

    def bytes_per_s(self, now: float) -> float:
        """The (lower) median of what is remembered; 0: nobody has said anything."""
        said = [rate for rate, at in self._told.values() if now - at < REMEMBER_S]
        return median_low(said) if said else 0.0
