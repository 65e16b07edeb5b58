"""Streams that were cut off, kept a while so that their readers can come back. Pure: `now` in seconds is an argument.

What is kept is small: the pieces already made and the session's exported state. The swarm holds nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from paceline.client.options import GenerateOptions
from paceline.client.results import Piece, Result
from paceline.gateway.source import LiveSource, ResumedSource
from paceline.gateway.writers import Writer


@dataclass(slots=True, kw_only=True)
class Kept:
    """One stream. `owner`: whose API key may resume it. `source`: where its tokens come from now."""

    owner: str
    options: GenerateOptions
    writer: Callable[[], Writer]
    endpoint: str
    source: LiveSource | ResumedSource
    events: bool = False
    pieces: list[Piece] = field(default_factory=list)
    finished: Result | None = None
    until: float = 0.0


class Shelf:
    """At most `room` streams, each for `keep_s` after it was last touched; the oldest goes first."""

    def __init__(self, room: int, keep_s: float) -> None:
        self._room = room
        self._keep_s = keep_s
        self._kept: dict[str, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, name: str, kept: Kept, now: float) -> None:
        """Keep (again), as the youngest."""
        self._kept.pop(name, None)
        kept.until = now + self._keep_s
        self._kept[name] = kept
        self._forget(now)

    def touch(self, name: str, kept: Kept, now: float) -> None:
        """Keep longer, unless another reader's stream has taken its place."""
        if self._kept.get(name) is kept:
            self.put(name, kept, now)

    def find(self, name: str, owner: str, now: float) -> Kept | None:
        """The stream, if it is this owner's and still here."""
        self._forget(now)
        kept = self._kept.get(name)
        return kept if kept is not None and kept.owner == owner else None

    def _forget(self, now: float) -> None:
        for name in [name for name, kept in self._kept.items() if kept.until <= now]:
            del self._kept[name]
        while len(self._kept) > self._room:
            del self._kept[next(iter(self._kept))]
