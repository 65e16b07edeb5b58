"""Brings blocks from several peers at once into the store. The plan (weights_plan) decides, this performs.

Knows links, requests, partial files and rates. A piece is written where it belongs when it arrives; a block is verified
by its hash before it enters the store. One request is out for each piece, a few for each peer; a peer that is silent
for `patience_s` is left alone, and its pieces are asked of others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256

import trio

from paceline.net.lane import Lanes
from paceline.net.links import Links
from paceline.net.unwrapping import single_errors
from paceline.node.blocks import InThread
from paceline.node.weights_lanes import Listening
from paceline.node.weights_plan import FetchPlan, Piece
from paceline.node.weights_rate import Rate
from paceline.store.errors import StoreError
from paceline.store.manifest import Block
from paceline.store.partial import Partial
from paceline.store.store import Store
from paceline.wire import limits
from paceline.wire.errors import CorruptBlock, DeadlineExceeded, Overloaded, PacelineError, PeerUnavailable
from paceline.wire.ids import PeerId
from paceline.wire.messages import BlockPiece, BlockRequest, Holdings, HoldingsRequest, PeerAddress

Sources = Callable[[], Awaitable[Sequence[PeerAddress]]]
"""Who might hold blocks, now."""

Progress = Callable[[int, int], None]
"""``(done, total)`` bytes."""

VERIFIERS = 2
"""Blocks that are hashed at once."""


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """`piece_bytes`: one request. `window`: requests out at one peer, by halves. `bytes_per_s`: of all peers, 0: no
    limit. `patience_s`: silence of a peer that was asked. `give_up_s`: without anything new while nobody offers what
    lacks.
    """

    piece_bytes: int = 1024 * 1024
    window: int = 8
    most_peers: int = 16
    bytes_per_s: float = 0.0
    patience_s: float = 20.0
    again_s: float = 2.0
    give_up_s: float = 30.0


@dataclass(slots=True)
class FetchReport:
    """What a fetch did. `sent`: bytes taken from each peer; `again`: pieces that had to be fetched a second time."""

    blocks: int = 0
    bytes: int = 0
    resumed: int = 0
    again: int = 0
    seconds: float = 0.0
    sent: dict[str, int] = field(default_factory=dict)
    banned: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Answer:
    """One piece that somebody waits for."""

    came: trio.Event = field(default_factory=trio.Event)
    total: int = 0
    data: bytes = b""


class Fetcher:
    """One per process: banned peers stay banned. Messages come in through `on_message`."""

    def __init__(
        self,
        links: Links,
        store: Store,
        config: FetchConfig | None = None,
        in_thread: InThread = trio.to_thread.run_sync,
        lanes: Lanes | None = None,
    ) -> None:
        self.config = config or FetchConfig()
        self.in_thread = in_thread
        self.lanes = lanes
        self.banned: set[PeerId] = set()
        self.reports: list[FetchReport] = []
        """Of every fetch that has begun, oldest first."""
        self._links = links
        self._store = store
        self._rate = Rate(self.config.bytes_per_s)
        self._runs: list[_Run] = []
        self._answers: dict[int, tuple[PeerId, _Answer]] = {}
        self._request = 0

    def on_message(self, peer: PeerId, message: BlockPiece | Holdings, payload: memoryview) -> None:
        """An answer to one of the running fetches; anything else is ignored."""
        who, answer = self._answers.get(message.request, (None, None))
        if who == peer and answer is not None and isinstance(message, BlockPiece):
            answer.total, answer.data = message.total, bytes(payload)
            answer.came.set()
            return
        for run in self._runs:
            run.on_message(peer, message, payload)

    def on_lost(self, peer: PeerId) -> None:
        """A link fell."""
        for run in self._runs:
            run.on_lost(peer)

    def number(self) -> int:
        """A fresh request number."""
        self._request = (self._request + 1) % (1 << 32)
        return self._request

    async def small(self, at: PeerAddress, digest: bytes, most: int) -> bytes:
        """A small block or a manifest from one peer, verified. Raises PeerUnavailable; CorruptBlock from a liar."""
        data = bytearray()
        while True:
            total, piece = await self._one_piece(at, digest, len(data))
            if total == 0 or not piece:
                raise PeerUnavailable(f"does not hold {digest.hex()[:12]}", peer=at.peer)
            if total > most:
                raise CorruptBlock(f"{total} bytes are over the limit of {most}", peer=at.peer)
            data += piece
            if len(data) >= total:
                break
        if sha256(data).digest() != digest:
            raise CorruptBlock("sent bytes of another hash", peer=at.peer)
        return bytes(data)

    async def _one_piece(self, at: PeerAddress, digest: bytes, offset: int) -> tuple[int, bytes]:
        number, answer = self.number(), _Answer()
        self._answers[number] = (PeerId(at.peer), answer)
        try:
            with trio.move_on_after(self.config.patience_s):
                await self._links.connect(at, self.config.patience_s)
                self._links.send(at, BlockRequest(number, digest, offset, self.config.piece_bytes))
                await answer.came.wait()
                return answer.total, answer.data
        finally:
            del self._answers[number]
        raise DeadlineExceeded("no piece in time", peer=at.peer)

    async def fetch(self, blocks: Sequence[Block], sources: Sources, progress: Progress | None = None) -> FetchReport:
        """All of `blocks` into the store, those that are there already excepted.

        Raises PeerUnavailable; QuotaReached, DiskFull, and then what has landed stays.
        """
        report, began = FetchReport(), trio.current_time()
        self.reports.append(report)
        claim = await self.in_thread(self._store.reserve, blocks)
        try:
            while missing := [block for block in dict.fromkeys(blocks) if not self._store.has(block.digest)]:
                await self._fetch(missing, sources, report, progress or (lambda done, total: None))
        finally:
            self._store.lease.drop(claim)
        report.seconds = trio.current_time() - began
        return report

    async def _fetch(self, missing: Sequence[Block], sources: Sources, report: FetchReport, progress: Progress) -> None:
        opened = [Partial.open(self._store, block, self.config.piece_bytes) for block in missing]
        mine = [it for it in opened if it is not None]
        if not mine:
            await trio.sleep(0.2)  # another process of this machine is fetching them
            return
        run = _Run(self, self._links, self._rate, mine, report, progress)
        self._runs.append(run)
        try:
            await run.run(sources)
        finally:
            self._runs.remove(run)
            for it in mine:
                it.close()


class _Run:
    """One fetch of blocks whose partial files this process has locked."""

    def __init__(
        self, owner: Fetcher, links: Links, rate: Rate, files: list[Partial], report: FetchReport, progress: Progress
    ) -> None:
        self._owner, self._links, self._rate, self._report, self._progress = owner, links, rate, report, progress
        self._files = {it.block.hash: it for it in files}
        landed = {it.block.hash: it.landed() for it in files}
        self.plan = FetchPlan([it.block for it in files], owner.config.piece_bytes, landed)
        report.resumed += sum(map(len, landed.values()))
        self._total = sum(it.block.size for it in files)
        self._done = min(self._total, sum(map(len, landed.values())) * owner.config.piece_bytes)
        self._out: dict[int, tuple[PeerId, Piece]] = {}
        self._asked: dict[int, tuple[PeerAddress, list[Block]]] = {}
        self._lanes = Listening(owner.lanes, owner.on_message, self._ring, self._forget)
        self._bells: dict[PeerId, trio.Event] = {}
        self._verify, self._to_verify = trio.open_memory_channel[Block](float("inf"))
        self._seen: set[tuple[str, int]] = set()
        self._news = trio.current_time()
        self._trouble: StoreError | None = None

    # --- messages

    def on_message(self, peer: PeerId, message: BlockPiece | Holdings, payload: memoryview) -> None:
        if isinstance(message, Holdings):
            at, blocks = self._asked.pop(message.request, (None, []))
            if at is not None and at.peer == peer:
                self.plan.holds(peer, [b.hash for b, flag in zip(blocks, message.held, strict=False) if flag])
                self._lanes.begin(self._nursery, at, message.lane)
        else:
            who, piece = self._out.get(message.request, (None, None))
            if who == peer and piece is not None:
                del self._out[message.request]
                self._landed(peer, piece, message.total, payload)
        self._ring(peer)

    def _landed(self, peer: PeerId, piece: Piece, total: int, payload: memoryview) -> None:
        if total != piece.block.size or len(payload) != piece.length:
            self.plan.lacks(peer, piece.block)
            return
        if not self.plan.arrived(peer, piece):
            return
        key = (piece.block.hash, piece.index)
        self._report.again += key in self._seen
        self._seen.add(key)
        try:
            self._files[piece.block.hash].write(piece.index, payload)
        except StoreError as error:
            self._trouble = error  # the link that brought the piece, and who else is served here, need not know
            self._nursery.cancel_scope.cancel()
            return
        self._news = trio.current_time()
        self._report.bytes += piece.length
        self._report.sent[peer] = self._report.sent.get(peer, 0) + piece.length
        self._done = min(self._total, self._done + piece.length)
        self._progress(self._done, self._total)
        if any(block.hash == piece.block.hash for block in self.plan.ready()):
            self._verify.send_nowait(piece.block)

    def on_lost(self, peer: PeerId) -> None:
        self._forget(peer)
        self._lanes.lost(peer)
        self._ring(peer)

    def _forget(self, peer: PeerId) -> None:
        self.plan.gone(peer)
        self._out = {number: it for number, it in self._out.items() if it[0] != peer}

    def _ring(self, *peers: PeerId) -> None:
        for peer in peers or tuple(self._bells):
            if peer in self._bells:
                self._bells[peer].set()

    # --- life

    async def run(self, sources: Sources) -> None:
        """Until all blocks are in the store. Raises PeerUnavailable where nobody has what lacks, StoreError."""
        for block in self.plan.ready():
            self._verify.send_nowait(block)
        with single_errors():
            await self._run(sources)
        if self._trouble is not None:
            raise self._trouble

    async def _run(self, sources: Sources) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(VERIFIERS):
                nursery.start_soon(self._verify_each)
            asking: set[PeerId] = set()
            while True:
                for at in list(await sources())[: self._owner.config.most_peers]:
                    peer = PeerId(at.peer)
                    if peer not in asking and peer not in self._owner.banned:
                        asking.add(peer)
                        nursery.start_soon(self._ask_peer, at, asking)
                self._check_patience()
                await trio.sleep(self._owner.config.again_s / 4)

    def _check_patience(self) -> None:
        quiet = trio.current_time() - self._news
        lacking = self.plan.unavailable() or self.plan.blocks
        if self._owner.banned and not self._bells and quiet > 2 * self._owner.config.again_s and lacking:
            raise CorruptBlock(
                f"block {lacking[0].hash[:12]} is held by nobody but peers that sent bytes of another hash",
                peer=min(self._owner.banned),
            )
        if quiet < self._owner.config.give_up_s:
            return
        raise PeerUnavailable(
            f"nobody sent {len(lacking)} blocks (the first is {lacking[0].hash[:12]}) for {quiet:.0f} s",
            cure="start a node that holds them, or pull the model here",
        )

    async def _ask_peer(self, at: PeerAddress, asking: set[PeerId]) -> None:
        """One peer's part, for as long as it answers."""
        peer, config = PeerId(at.peer), self._owner.config
        self._bells[peer] = trio.Event()
        try:
            await self._links.connect(at, config.patience_s)
            while peer not in self.plan.banned:
                self._ask_holdings(at)
                with trio.move_on_after(config.again_s):
                    await self._converse(at)
        except PacelineError:
            self._forget(peer)
            await trio.sleep(config.again_s)
        finally:
            asking.discard(peer)
            del self._bells[peer]

    def _ask_holdings(self, at: PeerAddress) -> None:
        blocks = self.plan.blocks[: limits.MAX_HOLDINGS]
        if blocks:
            number = self._owner.number()
            self._asked = {k: v for k, v in self._asked.items() if v[0].peer != at.peer} | {number: (at, blocks)}
            hashes = tuple(block.digest for block in blocks)
            self._links.send(at, HoldingsRequest(number, hashes, self._lanes.wanted(at)))

    async def _converse(self, at: PeerAddress) -> None:
        """Keep a few requests out at this peer. Raises PeerUnavailable where it stays silent or its link fell."""
        peer, config = PeerId(at.peer), self._owner.config
        while True:
            few = self._lanes.settled(peer) and self.plan.in_flight(peer) <= config.window // 2
            while few and self.plan.in_flight(peer) < config.window:
                while (wait_s := self._rate.wait_s(trio.current_time())) > 0:
                    await trio.sleep(wait_s)
                piece = self.plan.next(peer)
                if piece is None:
                    break
                self._ask_piece(at, piece)  # no checkpoint since the plan was told
            self._bells[peer] = trio.Event()
            waiting = self.plan.in_flight(peer)
            with trio.move_on_after(config.patience_s) as scope:
                await self._bells[peer].wait()
            if scope.cancelled_caught and waiting:
                raise PeerUnavailable("stayed silent", peer=peer)
            if peer not in self._links.peers():
                raise PeerUnavailable("went away", peer=peer)

    def _ask_piece(self, at: PeerAddress, piece: Piece) -> None:
        peer = PeerId(at.peer)
        self._rate.spend(piece.length, trio.current_time())
        number = self._owner.number()
        self._out[number] = (peer, piece)
        try:
            self._links.send(at, BlockRequest(number, piece.block.digest, piece.offset, piece.length))
        except Overloaded as error:
            raise PeerUnavailable("takes no requests", peer=peer) from error

    # --- verification

    async def _verify_each(self) -> None:
        """Blocks that are complete are saved, or their senders judged."""
        async for block in self._to_verify:
            if self.plan.judge(block):  # else it has lost a piece while it waited, and comes here again
                await self._judge(block)

    async def _judge(self, block: Block) -> None:
        file, in_thread = self._files[block.hash], self._owner.in_thread
        try:
            await in_thread(file.verify)
        except CorruptBlock:
            digests = await in_thread(partial(file.digests, range(file.pieces)))
            self._ban(self.plan.bad(block, digests))
            file.reset()
            self._done = max(0, self._done - block.size)
            self._ring()
            return
        self._nursery.start_soon(self._save, block)

    async def _save(self, block: Block) -> None:
        """A good block enters the store; the disk takes its time, and the next block is hashed meanwhile."""
        file, in_thread = self._files[block.hash], self._owner.in_thread
        suspects = self.plan.suspects(block)
        digests = await in_thread(partial(file.digests, suspects)) if suspects else {}
        await in_thread(file.complete)
        self._report.blocks += 1
        self._ban(self.plan.blame(block, digests))
        self.plan.good(block)
        self._ring()
        if not self.plan.blocks:
            self._nursery.cancel_scope.cancel()

    def _ban(self, liars: set[PeerId]) -> None:
        for peer in liars - self._owner.banned:
            self._owner.banned.add(peer)
            self._report.banned.append(peer)
            self._forget(peer)
