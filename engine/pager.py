"""Whose KV lies in memory while more sessions are open than fit: who runs now, and who makes room.

Sessions take turns. One that came in keeps its place for a while (`quantum_s`), or until it has been idle
(`patience_s`): a ring's sessions are idle at each stage most of the time, and a place that is given away at each trip
would be all that the disk does. Whoever waits longest comes first, and nobody overtakes him. No place is kept for
ever, so stages that chose differently cannot wait for each other for ever.

Pure: knows names, sizes in positions and times, moves nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

QUANTUM_S = 1.0
PATIENCE_S = 0.4


@dataclass(frozen=True, slots=True)
class Turn:
    """`run`: whose work to take now. `out`: whose KV must leave memory before."""

    run: tuple[Hashable, ...]
    out: tuple[Hashable, ...]


@dataclass(slots=True)
class _Place:
    size: int
    came_at: float
    ran_at: float


class Pager:
    """`budget`: positions that fit in memory."""

    def __init__(self, budget: int, *, quantum_s: float = QUANTUM_S, patience_s: float = PATIENCE_S) -> None:
        self.budget = budget
        self._quantum_s, self._patience_s = quantum_s, patience_s
        self._in: dict[Hashable, _Place] = {}
        self._waiting: dict[Hashable, int] = {}
        self._count = 0

    @property
    def held(self) -> int:
        """Positions in memory."""
        return sum(place.size for place in self._in.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._in

    def close(self, key: Hashable) -> None:
        """The session has ended. Unknown ones are fine."""
        self._in.pop(key, None)
        self._waiting.pop(key, None)

    def turn(self, needs: Mapping[Hashable, int], now: float) -> Turn:
        """`needs`: sessions that have work, with the positions that their KV takes up once it has run; each at most
        the budget. What is answered has been done: the caller moves KV accordingly. `run` may be empty for a while.
        """
        for key in needs.keys() - self._in.keys() - self._waiting.keys():
            self._count += 1
            self._waiting[key] = self._count
        kept = [key for key, place in self._in.items() if key not in needs and self._keeps(place, now, idle=True)]
        room = self.budget - sum(self._in[key].size for key in kept)
        run: list[Hashable] = []
        for key in sorted(needs, key=lambda key: self._rank(key, now)):
            if needs[key] > room:
                break
            room -= needs[key]
            run.append(key)
        return Turn(tuple(run), tuple(self._settle(run, set(kept), needs, room, now)))

    def must(self, needs: Mapping[Hashable, int], now: float) -> Turn:
        """As `turn`, for works that run whatever others wait for. Together they must fit the budget."""
        room = self.budget - sum(needs.values())
        return Turn(tuple(needs), tuple(self._settle(list(needs), set(), needs, room, now)))

    def _rank(self, key: Hashable, now: float) -> tuple[int, float]:
        place = self._in.get(key)
        if place is None:
            return 1, self._waiting[key]
        return (0 if self._keeps(place, now, idle=False) else 2), place.came_at

    def _keeps(self, place: _Place, now: float, *, idle: bool) -> bool:
        return now < place.came_at + self._quantum_s and not (idle and now >= place.ran_at + self._patience_s)

    def _settle(
        self, run: list[Hashable], kept: set[Hashable], needs: Mapping[Hashable, int], room: int, now: float
    ) -> list[Hashable]:
        """Note who is in now; of the others, those that ran last stay while there is `room`."""
        others = [key for key in self._in if key not in kept and key not in set(run)]
        out: list[Hashable] = []
        for key in sorted(others, key=lambda key: -self._in[key].ran_at):
            if self._in[key].size <= room:
                room -= self._in[key].size
                continue
            out.append(key)
            del self._in[key]
            if key in needs:
                self._count += 1
                self._waiting[key] = self._count
        for key in run:
            came_at = self._in[key].came_at if key in self._in else now
            self._in[key] = _Place(needs[key], came_at, now)
            self._waiting.pop(key, None)
        return out
