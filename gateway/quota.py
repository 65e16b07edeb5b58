"""What each API key may still use. Pure: `now` in seconds (any steady clock) is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.gateway.config import ApiKey
from paceline.gateway.errors import RateLimited

MINUTE_S, DAY_S = 60.0, 86_400.0


@dataclass(slots=True)
class Bucket:
    """A token bucket: holds at most `capacity`, refills wholly in `period_s`. May be overdrawn by what was not known
    beforehand. Capacity 0: no limit.
    """

    capacity: float
    period_s: float
    _level: float = field(init=False)
    _at: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._level = self.capacity

    def wait_s(self, need: float, now: float) -> float:
        """Seconds until `need` (at most the capacity) is there; 0 where it is now."""
        if not self.capacity:
            return 0.0
        self._refill(now)
        return max(0.0, (need - self._level) * self.period_s / self.capacity)

    def take(self, amount: float, now: float) -> None:
        """Use `amount`, whether it is there or not."""
        if self.capacity:
            self._refill(now)
            self._level -= amount

    def _refill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.capacity / self.period_s)
        self._at = now if self._at is None else max(now, self._at)


class Meter:
    """One key's use."""

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self.running = 0
        self._requests = Bucket(key.requests_per_minute, MINUTE_S)
        self._minute = Bucket(key.tokens_per_minute, MINUTE_S)
        self._day = Bucket(key.tokens_per_day, DAY_S)

    def admit(self, now: float) -> None:
        """Count a request in; pair with `done`. Raises RateLimited, which says when to come back."""
        if self.key.concurrent and self.running >= self.key.concurrent:
            raise RateLimited(f"{self.running} requests of {self.key.name!r} are running already", retry_after_s=1.0)
        for what, bucket in (("requests", self._requests), ("tokens", self._minute), ("tokens", self._day)):
            if (wait := bucket.wait_s(1.0, now)) > 0:
                limit = f"{bucket.capacity:.0f} {what} in {bucket.period_s:.0f} s"
                raise RateLimited(f"the limit of {self.key.name!r} is reached: {limit}", retry_after_s=wait)
        self._requests.take(1.0, now)
        self.running += 1

    def done(self, tokens: int, now: float) -> None:
        """A request has ended; `tokens` of prompt and answer together."""
        self.running -= 1
        self._minute.take(tokens, now)
        self._day.take(tokens, now)
