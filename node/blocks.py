"""Serves pieces of verified blocks and manifests to whoever asks, in turn and within a rate.

Knows requests, links and a source of blocks. Every peer has a short queue and the queues take turns, so that one who
asks for a whole model does not starve a client that wants its tokenizer. A block is verified before its first piece
leaves, off the event loop; what fails is not served.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from paceline.net.lane import Lanes, OutLane
from paceline.net.links import Links
from paceline.node.weights_rate import Rate
from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock, ModelNotFound, Overloaded
from paceline.wire.ids import PeerId, Revision
from paceline.wire.messages import BlockPiece, BlockRequest, Holdings, HoldingsRequest

InThread = Callable[..., Awaitable[Any]]
"""Runs a blocking call elsewhere: a thread in life; a virtual clock cannot wait for one."""

MOST_WAITING = 64
"""Requests of one peer that wait; more are dropped, and the peer asks again."""

MOST_QUEUED_BYTES = 4 * 1024 * 1024
"""Bytes of pieces that wait on a link: frames of sessions wait behind them."""


class BlockSource(Protocol):
    """Where blocks lie: `StoreBlocks` in life. `piece` is called off the event loop."""

    def piece(self, digest: bytes, offset: int, length: int) -> tuple[int, bytes]:
        """``(size of the block, bytes)``; ``(0, b"")`` where it is not held."""
        ...

    def holds(self, digest: bytes) -> bool:
        """Whether it is held. Quick; may turn out wrong."""
        ...

    def quick(self, digest: bytes, offset: int, room: memoryview) -> tuple[int, int] | None:
        """As `piece`, into `room`, where nothing has to be verified and no disk has to be waited for; else None.

        ``(size of the block, bytes written)``.
        """
        ...


class NoBlocks:
    """A node that serves no blocks."""

    def piece(self, digest: bytes, offset: int, length: int) -> tuple[int, bytes]:
        return 0, b""

    def holds(self, digest: bytes) -> bool:
        return False

    def quick(self, digest: bytes, offset: int, room: memoryview) -> tuple[int, int] | None:
        return 0, 0


class StoreBlocks:
    """Blocks and manifests of a model store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def holds(self, digest: bytes) -> bool:
        return self._store.has(digest) or self._store.manifest_path(Revision(digest)).exists()

    def piece(self, digest: bytes, offset: int, length: int) -> tuple[int, bytes]:
        try:
            if self._store.has(digest):
                path = self._store.path(digest)
            else:
                self._store.manifest(Revision(digest))
                path = self._store.manifest_path(Revision(digest))
            with path.open("rb", buffering=0) as file:
                total = file.seek(0, 2)
                file.seek(min(offset, total))
                return total, file.read(length)
        except (OSError, CorruptBlock, ModelNotFound):
            return 0, b""

    def quick(self, digest: bytes, offset: int, room: memoryview) -> tuple[int, int] | None:
        path = self._store.verified(digest)
        if path is None:
            return None
        try:
            with path.open("rb", buffering=0) as file:
                total = os.fstat(file.fileno()).st_size
                want = max(0, min(len(room), total - offset))
                got = os.preadv(file.fileno(), [room[:want]], offset, os.RWF_NOWAIT) if want else 0
        except OSError:
            return None  # not in memory, or not on this file system
        return (total, got) if got == want else None


@dataclass(slots=True)
class DeskStatistics:
    """Since the start."""

    pieces: int = 0
    bytes: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Queue:
    waiting: deque[BlockRequest] = field(default_factory=deque)


class BlockDesk:
    """See the module's docstring. `bytes_per_s`: of all that is served; 0: no limit."""

    def __init__(
        self,
        links: Links,
        source: BlockSource,
        bytes_per_s: float = 0.0,
        in_thread: InThread = trio.to_thread.run_sync,
        lanes: Lanes | None = None,
    ) -> None:
        self.statistics = DeskStatistics()
        self._links = links
        self._lanes = lanes
        self._source = source
        self._in_thread = in_thread
        self._rate = Rate(bytes_per_s)
        self._queues: dict[PeerId, _Queue] = {}
        self._turn: deque[PeerId] = deque()
        self._bell = trio.Event()

    def handle(self, peer: PeerId, message: BlockRequest | HoldingsRequest) -> None:
        """A question from a peer; never blocks."""
        if isinstance(message, HoldingsRequest):
            held = bytes(self._source.holds(digest) for digest in message.hashes)
            key = self._lanes.ticket(peer) if message.lane and self._lanes is not None else b""
            self._links.reply(peer, Holdings(message.request, held, key))
            return
        queue = self._queues.get(peer)
        if queue is None:
            queue = self._queues[peer] = _Queue()
            self._turn.append(peer)
        if len(queue.waiting) >= MOST_WAITING:
            self.statistics.refused += 1
            return
        queue.waiting.append(message)
        self._bell.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            peer = self._next()
            if peer is None:
                self._bell = trio.Event()
                with trio.move_on_after(0.01 if self._turn else float("inf")):
                    await self._bell.wait()
                continue
            await self._serve(peer, self._queues[peer].waiting.popleft())

    def _next(self) -> PeerId | None:
        """Whose turn it is: of those who ask and whose link has room. Peers that ask nothing more are forgotten."""
        for _ in range(len(self._turn)):
            peer = self._turn[0]
            if not self._queues[peer].waiting:
                self._turn.popleft()
                del self._queues[peer]
                continue
            self._turn.rotate(-1)
            lane = self._lane(peer)
            waiting = self._links.waiting_bytes(peer) if lane is None else lane.waiting_bytes
            if waiting < MOST_QUEUED_BYTES:
                return peer
        return None

    def _lane(self, peer: PeerId) -> OutLane | None:
        return None if self._lanes is None else self._lanes.to(peer)

    async def _serve(self, peer: PeerId, asked: BlockRequest) -> None:
        if (wait_s := self._rate.wait_s(trio.current_time())) > 0:
            await trio.sleep(wait_s)
        lane = self._lane(peer)
        room = None if lane is None else lane.room()
        view = memoryview(bytearray(asked.length)) if room is None else room.bytes[: asked.length]
        found = self._source.quick(asked.hash, asked.offset, view)
        if found is None:
            total, data = await self._in_thread(self._source.piece, asked.hash, asked.offset, asked.length)
            view[: len(data)] = data
            found = total, len(data)
        else:
            await trio.lowlevel.checkpoint()
        total, length = found
        try:
            if lane is not None and room is not None:
                lane.put(asked.request, total, room, length)
            else:
                self._links.reply(peer, BlockPiece(asked.request, total), view[:length])
        except Overloaded:
            self.statistics.refused += 1
            return
        self._rate.spend(length, trio.current_time())
        self.statistics.pieces += 1
        self.statistics.bytes += length
