"""What a stage has accepted and not yet applied: the queue in front of the engine, and the KV's length behind it.

Knows positions and who has them: the KV ``[0, length)``, the engine (one work at a time), the queue. Refuses to know
messages, peers and epochs' meaning: what may be accepted was decided before (decision.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from paceline.consistency.invariants import require
from paceline.wire.codec import Buffer
from paceline.wire.messages import Dtype


@dataclass(frozen=True, slots=True)
class Input:
    """Accepted positions ``[start, start + n)``: token ids at a head, rows of activations elsewhere.

    `sample`: the token after the last position is wanted (tail).
    """

    epoch: int
    branch: int
    start: int
    n: int
    ids: tuple[int, ...] = ()
    rows: Buffer = b""
    dtype: Dtype = "f32"
    sample: bool = False

    @property
    def end(self) -> int:
        return self.start + self.n

    def part(self, skip: int, take: int) -> Input:
        """Positions ``[start + skip, start + skip + take)`` of this input."""
        if self.ids:
            return replace(self, start=self.start + skip, n=take, ids=self.ids[skip : skip + take])
        row = len(self.rows) // self.n
        rows = memoryview(self.rows)[skip * row : (skip + take) * row]
        return replace(self, start=self.start + skip, n=take, rows=rows)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tail's result: what goes into the token event."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Inbox:
    """See the module's docstring. At most one work is with the engine, even where the result is no longer wanted."""

    def __init__(self) -> None:
        self.length = 0
        self._queue: deque[Input] = deque()
        self._running: Input | None = None
        self._busy: Input | None = None

    @property
    def expected(self) -> int:
        """The next position that can be accepted."""
        last = self._queue[-1] if self._queue else self._running
        return self.length if last is None else last.end

    def peek(self) -> Input | None:
        """What `take` would begin with, or None while the engine is busy with this session."""
        return self._queue[0] if self._queue and self._busy is None else None

    def push(self, given: Input) -> None:
        """Queue positions that directly follow what is there."""
        require(2, given.start == self.expected, f"input at {given.start}, expected {self.expected}")
        self._queue.append(given)

    def take(self, most: int, samples: Callable[[Input], bool]) -> Input:
        """Hand the first positions of the queue to the engine, at most `most`. Call it where `peek` gives something."""
        given = self._queue.popleft()
        if given.n > most:
            self._queue.appendleft(given.part(most, given.n - most))
            given = given.part(0, most)
        require(2, given.start == self.length, f"taking {given.start} at length {self.length}")
        sample = samples(given)
        self._running = self._busy = given if given.sample == sample else replace(given, sample=sample)
        return self._running

    def finish(self, given: Input, applied: bool) -> bool:
        """The engine is done with `given`. False: its result is no longer wanted, and its KV must be cropped."""
        require(3, given is self._busy, "a result came back twice, or for work that was not handed out")
        wanted = given is self._running
        self._busy = self._running = None
        if wanted and applied:
            self.length = given.end
        return wanted

    def draws(self, index: int) -> bool:
        """True where the work that runs will draw token `index`."""
        return self._running is not None and self._running.sample and self._running.end == index

    def clear(self, keeps: int = 0) -> None:
        """Forget what was accepted. A result still to come is wanted only where it ends within `keeps` positions."""
        self._queue.clear()
        if self._running is not None and self._running.end > keeps:
            self._running = None

    def crop(self, length: int) -> bool:
        """Hold nothing from `length` on, neither applied, running nor queued. True where the KV itself shrinks."""
        while self._queue and self._queue[-1].end > length:
            last = self._queue.pop()
            if last.start < length:
                self._queue.append(last.part(0, length - last.start))
        running = self._running
        if running is not None and running.end > length:
            self._running = None
            if running.start < length:  # its first part is still wanted: run that again
                self._queue.appendleft(running.part(0, length - running.start))
        if length >= self.length:
            return False
        self.length = length
        return True
