"""Is the peer still there, and how far away is it? Pure: time is an argument.

Silence is counted in ticks of the link's own watcher, and one tick counts for at most twice its length. So a stall of
*this* process (a long forward, a stopped laptop) is not taken for the peer's silence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_RTT_GAIN = 0.125
"""Weight of a new sample in the smoothed round trip (RFC 6298)."""

_LEAST_OF = 128
"""The least round trip is one of so many of the latest: a minute's pings. Routes last longer, busy moments do not."""

_GAP_DECAY = 0.9
_MAX_PINGS_OUT = 32


@dataclass(frozen=True, slots=True)
class LivenessConfig:
    """A peer is given up after ``max(silence_s, silence_factor × longest usual gap)``, at most `silence_max_s`."""

    ping_interval_s: float = 0.5
    silence_s: float = 1.5
    silence_factor: float = 3.0
    silence_max_s: float = 10.0

    @property
    def tick_s(self) -> float:
        """How often the watcher looks: detection is late by at most this."""
        return self.ping_interval_s / 2


class Liveness:
    """Round trip and silence of one link."""

    def __init__(self, config: LivenessConfig, now: float) -> None:
        self.rtt_s: float | None = None
        self.quiet_s = 0.0
        self._config = config
        self._looked = now
        self._gap_s = 0.0
        self._pinged = -1e9
        self._nonce = 0
        self._out: dict[int, float] = {}
        self._samples: deque[float] = deque(maxlen=_LEAST_OF)

    @property
    def rtt_min_s(self) -> float | None:
        """The least of the latest round trips: queues, and load on either end, only ever add."""
        return min(self._samples, default=None)

    @property
    def deadline_s(self) -> float:
        """Silence that ends the link, adapted to the gaps seen so far."""
        usual = self._config.silence_factor * self._gap_s
        return min(max(self._config.silence_s, usual), max(self._config.silence_max_s, self._config.silence_s))

    def tick(self, now: float) -> bool:
        """The watcher looks. True where the peer has been silent for too long."""
        self.quiet_s += min(now - self._looked, 2 * self._config.tick_s)
        self._looked = now
        return self.quiet_s >= self.deadline_s

    def heard(self, now: float) -> None:
        """Bytes arrived."""
        gap = self.quiet_s + min(now - self._looked, 2 * self._config.tick_s)
        self._looked = now
        self.quiet_s = 0.0
        self._gap_s = max(gap, _GAP_DECAY * self._gap_s + (1 - _GAP_DECAY) * gap)

    def ping_due(self, now: float) -> bool:
        # Half a tick of slack: a tick that comes a moment early must not put the ping off by a whole one.
        return now - self._pinged >= self._config.ping_interval_s - self._config.tick_s / 2

    def ping(self, now: float) -> int:
        """Nonce of a ping that leaves now."""
        self._nonce += 1
        self._pinged = now
        self._out[self._nonce] = now
        if len(self._out) > _MAX_PINGS_OUT:
            del self._out[next(iter(self._out))]
        return self._nonce

    def pong(self, nonce: int, now: float) -> None:
        """An answer: one sample of the round trip. Unknown and repeated nonces are ignored."""
        sent = self._out.pop(nonce, None)
        if sent is None:
            return
        sample = now - sent
        self.rtt_s = sample if self.rtt_s is None else self.rtt_s + _RTT_GAIN * (sample - self.rtt_s)
        self._samples.append(sample)
