"""KV of all sessions of a shard: room for it, who is in memory, what was computed before.

More sessions may be open than memory holds: those that do not run lie in files (engine.spill), and take turns
(engine.pager). A session whose input begins like another's takes over what that one computed (engine.prefixes).
Knows sessions' keys and tensors; no model, and no thread but its caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from paceline.engine.chain import BLOCK, Chain, id_bytes, seed
from paceline.engine.kv import SessionKV
from paceline.engine.pager import Pager, Turn
from paceline.engine.prefixes import Found, Prefixes, PrefixLimits, PrefixStatistics
from paceline.engine.sessions import Reservations
from paceline.engine.shard import Key, Work
from paceline.engine.spill import SpillFile
from paceline.wire.codec import Buffer
from paceline.wire.errors import Overloaded
from paceline.wire.ids import Span


@dataclass(frozen=True, slots=True)
class KvLimits:
    """`positions`: of KV in memory. `spilled`: positions that may be promised beyond that, to lie in files under
    `folder` (None: there are no files, so none). `prefixes`: what finished sessions leave behind."""

    positions: int = 65_536
    spilled: int = 0
    folder: Path | None = None
    prefixes: PrefixLimits = field(default_factory=PrefixLimits)


@dataclass(slots=True)
class KvStatistics:
    """Since the start: sessions moved out of memory and back, and their bytes. `resident`: positions in memory now."""

    moved_out: int = 0
    not_moved: int = 0
    """Sessions that stayed, because the disk was full."""
    moved_in: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    seconds: float = 0.0
    resident: int = 0
    prefixes: PrefixStatistics = field(default_factory=PrefixStatistics)


class Live:
    """An open session. As a prefix's Holder it offers its KV and the rows that it emitted."""

    def __init__(self, kv: SessionKV, span: Span, layers: range) -> None:
        self.kv, self.span, self.layers = kv, span, layers
        self.chain: Chain | None = None
        self.noted = 0
        """Blocks of the chain that the index knows."""
        self.file: SpillFile | None = None
        self.resident = True
        self._emitted: list[tuple[int, int, memoryview]] = []
        """Start, end and rows of what was sent on: the same bytes that the journal holds."""

    def emitted(self, start: int, n: int, data: Buffer) -> None:
        """Rows of positions ``[start, start + n)``, as they were sent on."""
        self._emitted.append((start, start + n, memoryview(data)))

    def crop(self, length: int) -> None:
        """Forget positions from `length` on."""
        while self._emitted and self._emitted[-1][1] > length:
            start, end, data = self._emitted.pop()
            if start < length:
                self._emitted.append((start, length, data[: len(data) // (end - start) * (length - start)]))

    def parts(self, start: int, end: int) -> Iterator[Tensor]:
        yield from self.kv.parts(start, end) if self.resident or self.file is None else self.file.parts(start, end)
        if self._emitted:
            rows = bytearray()
            for first, last, data in self._emitted:
                row = len(data) // (last - first)
                rows += data[max(0, start - first) * row : max(0, min(last, end) - first) * row]
            yield torch.frombuffer(rows, dtype=torch.uint8).view(1, end - start, -1)


@dataclass(frozen=True, slots=True)
class Recalled:
    """The first `n` positions of a work need not be run; `rows`: what they emit (empty at a tail)."""

    n: int = 0
    rows: bytes = b""


class KvRoom:
    """See the module's docstring. `name`: what tells this shard's prefixes from all others'."""

    def __init__(
        self,
        span: Span,
        layers: int,
        limits: KvLimits,
        max_context: int,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._span, self._layers, self._limits, self._name, self._clock = span, layers, limits, name, clock
        spilled = limits.spilled if limits.folder is not None else 0
        self._promised = Reservations(limits.positions + spilled, max_context)
        self._live: dict[Key, Live] = {}
        self._pager = Pager(limits.positions)
        self._scarce = spilled > 0
        self._leaving: set[Key] = set()
        """Who must leave memory before the next step."""
        self._closed: list[Live] = []
        self._statistics = KvStatistics()
        self.prefixes = Prefixes(limits.prefixes, limits.folder)

    # --- sessions

    @property
    def free(self) -> int:
        """Positions that can still be promised."""
        return self._promised.free

    def statistics(self) -> KvStatistics:
        """Live counters."""
        self._statistics.resident = (
            self._pager.held if self._scarce else sum(live.kv.capacity for live in self._live.values())
        )
        self._statistics.prefixes = self.prefixes.statistics
        return self._statistics

    def open(self, key: Key, max_positions: int, span: Span) -> None:
        """Raises Overloaded, ContextOverflow, ValueError."""
        self._promised.reserve(key, max_positions)
        if max_positions > self._limits.positions:
            self._promised.release(key)
            raise Overloaded(f"no KV room: {max_positions} positions asked for, memory holds {self._limits.positions}")
        layers = range(span.start - self._span.start, span.end - self._span.start)
        self._live[key] = Live(SessionKV(len(self._span), max_positions), span, layers)

    def share(self, key: Key, scope: bytes) -> None:
        """See engine.shard.Paged."""
        live = self._live[key]
        if self.prefixes.enabled and live.kv.length == 0:
            live.chain = Chain(seed(self._name, str(live.span), scope))

    def close(self, key: Key) -> None:
        """Unknown keys are fine."""
        self._promised.release(key)
        self._pager.close(key)
        self._leaving.discard(key)
        live = self._live.pop(key, None)
        if live is not None:
            self._closed.append(live)

    @property
    def untidy(self) -> bool:
        """True where `tidy` has something to do."""
        return bool(self._closed)

    def tidy(self) -> None:
        """Keep what closed sessions leave behind, and free the rest."""
        for live in self._closed:
            if live.chain is not None:
                self.prefixes.keep(live, live.chain.digests[: live.noted])
            if live.file is not None:
                live.file.close()
        self._closed.clear()

    def span(self, key: Key) -> Span:
        """The layers that a session runs here."""
        return self._live[key].span

    def reserved(self, key: Key) -> int:
        """Positions promised to a session. Raises KeyError."""
        return self._promised.held(key)

    def length(self, key: Key) -> int:
        """Positions in a session's KV. Raises KeyError."""
        return self._live[key].kv.length

    def crop(self, key: Key, length: int) -> None:
        """Forget positions from `length` on. Raises ValueError."""
        live = self._live[key]
        if not 0 <= length <= live.kv.length:
            raise ValueError(f"crop to {length} of a KV of {live.kv.length} positions")
        live.kv.length = length
        live.crop(length)
        if live.file is not None and live.resident:
            live.file.crop(length)
        if live.chain is not None:
            self.prefixes.forget(live, live.chain.digests[length // BLOCK : live.noted])
            live.chain.crop(length)
            live.noted = min(live.noted, length // BLOCK)

    # --- turns

    def turn(self, wanting: Sequence[Key]) -> list[Key]:
        """See engine.shard.Paged. Moves nothing yet."""
        if not self._scarce:
            return list(wanting)
        needs = {key: self._need(self._live[key], self.length(key) + 1) for key in wanting}
        turn = self._pager.turn(needs, self._clock())
        self._leaving.update(turn.out)
        return list(turn.run)

    def waves(self, works: Sequence[Work]) -> Iterator[list[Work]]:
        """The works in groups whose KV fits into memory together; each is brought in when its group's turn comes."""
        if not self._scarce:
            yield list(works)
            return
        group: dict[Key, int] = {}
        mine: list[Work] = []
        for work in works:
            need = self._need(self._live[work.key], work.start + work.n)
            if group and sum(group.values()) + need > self._limits.positions:
                self._move(self._pager.must(group, self._clock()))
                yield mine
                group, mine = {}, []
            group[work.key] = need
            mine.append(work)
        if mine:
            self._move(self._pager.must(group, self._clock()))
            yield mine

    def kv(self, key: Key) -> SessionKV:
        """Of a session that is in memory."""
        live = self._live[key]
        assert live.resident
        return live.kv

    def _need(self, live: Live, end: int) -> int:
        if live.resident:
            return live.kv.capacity_for(end)
        return SessionKV(0, live.kv.limit).capacity_for(max(end, live.kv.length))

    def _move(self, turn: Turn) -> None:
        leaving = [self._live[key] for key in (self._leaving | set(turn.out)) - set(turn.run)]
        coming = [live for live in map(self._live.__getitem__, turn.run) if not live.resident]
        self._leaving.clear()
        began = self._clock()
        for live in leaving:
            try:
                self._out(live)
            except OSError:  # the disk is full
                self._statistics.not_moved += 1
        for live in coming:
            self._in(live)
        if leaving or coming:
            self._statistics.seconds += self._clock() - began

    def _out(self, live: Live) -> None:
        """To its file: only what the file does not hold yet. Raises OSError."""
        if not live.resident:
            return
        if live.file is None:
            assert self._limits.folder is not None
            live.file = SpillFile(self._limits.folder)
        live.file.crop(live.kv.length)
        if live.file.length < live.kv.length:
            parts = live.kv.parts(live.file.length, live.kv.length)
            self._statistics.bytes_out += live.file.append(parts)
        self._statistics.moved_out += 1
        live.kv.drop()
        live.resident = False

    def _in(self, live: Live) -> None:
        live.resident = True
        kv, length = live.kv, live.kv.length
        kv.expected = length + 1
        for number, start, tensor in live.file.read() if live.file is not None else ():
            n = min(tensor.shape[1], length - start)
            if n > 0:
                kv.put(live.layers[number // 2], number % 2, start, tensor[:, :n])
        if live.file is not None:
            self._statistics.bytes_in += live.file.nbytes
            live.file.crop(length)
        self._statistics.moved_in += 1

    # --- prefixes

    def recall(self, work: Work) -> Recalled:
        """What of `work` was computed before: its KV is put in place (the length is left to the step)."""
        live = self._live[work.key]
        chain = live.chain
        if chain is None:
            return Recalled()
        known = len(chain.digests)
        aligned = work.start == chain.length and work.start % BLOCK == 0
        chain.extend(work.start, work.n, *_input(work))
        fresh = chain.digests[known:]
        if not aligned or not fresh:
            return Recalled()
        found = self.prefixes.find(fresh, known)
        return self._restore(live, found, work) if found else Recalled()

    def _restore(self, live: Live, found: Sequence[Found], work: Work) -> Recalled:
        live.kv.expected = work.start + work.n
        rows: list[bytes] = []
        for piece in found:
            parts = piece.holder.parts(piece.start, piece.end)
            for layer in live.layers:
                for which in (0, 1):
                    live.kv.put(layer, which, piece.start, next(parts))
            rows += [bytes(rest.contiguous().numpy().reshape(-1).data) for rest in parts]
        n = found[-1].end - work.start
        if work.sample is not None and n == work.n:
            n -= 1  # a token is drawn from the last row: run that one again
        return Recalled(n, b"".join(rows))

    def applied(self, work: Work, emitted: Buffer) -> None:
        """`work` has been run; `emitted`: the rows sent on (none at a tail)."""
        live = self._live[work.key]
        chain = live.chain
        if chain is None:
            return
        if len(emitted):
            live.emitted(work.start, work.n, emitted)
        whole = min(len(chain.digests), live.kv.length // BLOCK)
        self.prefixes.note(live, chain.digests[live.noted : whole])
        live.noted = max(live.noted, whole)


def _input(work: Work) -> tuple[Buffer, str]:
    """A work's rows as bytes, and what they mean."""
    if work.ids is not None:
        return id_bytes(work.ids), "ids"
    assert work.activations is not None
    return work.activations.data, work.activations.dtype
