"""For how long a revision in use has been known to be behind what is released for everybody. Pure.

Whoever serves or uses revisions says which, again and again, against the frontier that it knows; told is what has been
behind for longer than its patience, once for each revision and time. Times in seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paceline.consistency.revisions import Frontier

STALE_S = 600.0
"""An upgrade under way takes minutes: that is no reason for an alarm."""


@dataclass(frozen=True, slots=True)
class Lag:
    """A revision in use. `releases`: by how many it is behind, 0 for one that is not; `for_s`: known for so long."""

    model: str
    revision: bytes
    releases: int
    for_s: float
    overdue: bool

    def facts(self) -> dict[str, object]:
        """For a log line or a status."""
        return {
            "model": self.model,
            "revision": self.revision.hex(),
            "releases": self.releases,
            "for_s": round(self.for_s, 1),
            "overdue": self.overdue,
        }


@dataclass(slots=True)
class _Since:
    releases: int
    at: float
    told: bool = False


class Staleness:
    """Of one client or node. `patience_s`: how long a revision may be behind before anybody is told."""

    def __init__(self, patience_s: float = STALE_S) -> None:
        self.patience_s = patience_s
        self._used: dict[str, dict[bytes, _Since]] = {}

    def look(self, model: str, used: Iterable[bytes], frontier: Frontier, now: float) -> list[Lag]:
        """These revisions of a model are in use now, and no others. Those that have become overdue since the last look.

        What was never released, or is not in the frontier, is not behind.
        """
        before, now_used = self._used.get(model, {}), {}
        for revision in used:
            releases = frontier.behind(revision) or 0
            since = before.get(revision)
            if since is None or not (since.releases and releases):
                since = _Since(releases, now)
            since.releases = releases
            now_used[revision] = since
        self._used[model] = now_used
        overdue = [lag for lag in self.lags(now) if lag.model == model and lag.overdue]
        fresh = [lag for lag in overdue if not now_used[lag.revision].told]
        for lag in fresh:
            now_used[lag.revision].told = True
        return fresh

    def forget(self, models: Iterable[str]) -> None:
        """Models that are no longer in use here."""
        for model in models:
            self._used.pop(model, None)

    @property
    def models(self) -> frozenset[str]:
        """In use, as of the last looks."""
        return frozenset(self._used)

    def lags(self, now: float) -> list[Lag]:
        """Every revision in use, the current ones included."""
        found = []
        for model, used in sorted(self._used.items()):
            for revision, since in sorted(used.items()):
                for_s = now - since.at if since.releases else 0.0
                overdue = since.releases > 0 and for_s >= self.patience_s
                found.append(Lag(model, revision, since.releases, for_s, overdue))
        return found
