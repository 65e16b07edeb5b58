"""Who goes first where the gateway is full: by tier, then by arrival. Knows no HTTP."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import trio

Tier = Literal["auto", "default", "flex", "priority", "scale"]
PRIORITY: dict[Tier, int] = {"priority": 1, "scale": 1, "auto": 0, "default": 0, "flex": -1}
"""As nodes know it."""


class Line:
    """`places` at once."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[int, int, trio.Event]] = []
        self._came = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def take(self, tier: Tier) -> None:
        """A place, when there is one; `leave` it."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        self._came += 1
        mine = (-PRIORITY[tier], self._came, trio.Event())
        heapq.heappush(self._waiting, mine)
        try:
            await mine[2].wait()
        except trio.Cancelled:
            if mine[2].is_set():
                self.leave()
            else:
                self._waiting.remove(mine)
                heapq.heapify(self._waiting)
            raise

    def leave(self) -> None:
        """The place is free: whoever is first takes it."""
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._free += 1

    @asynccontextmanager
    async def place(self, tier: Tier) -> AsyncIterator[None]:
        """`take` and `leave` around a block."""
        await self.take(tier)
        try:
            yield
        finally:
            self.leave()
