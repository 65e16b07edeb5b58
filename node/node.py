"""A node at work: one nursery over links, directory, stage loop and announce loop.

Built from parts that are already real or in-memory (`node.daemon` builds the real ones); knows no file, model or port.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, get_args

import msgspec
import trio

from paceline.consistency.effects import Send
from paceline.consistency.journal import Spill
from paceline.dht.directory import Directory
from paceline.engine.shard import Paged
from paceline.net.links import Links, LinksConfig
from paceline.net.transport import Transport
from paceline.node.blocks import BlockDesk, BlockSource, NoBlocks
from paceline.node.config import NodeConfig
from paceline.node.engine_thread import Engine, EngineThread
from paceline.node.offering import Offering
from paceline.node.reachability import Reachability
from paceline.node.services import LoadedService
from paceline.node.sessions import SessionTable
from paceline.node.stage_loop import StageLoop
from paceline.node.surroundings import Surroundings
from paceline.node.tracing import Tracing
from paceline.node.weights_fetch import Fetcher
from paceline.wire.errors import PacelineError, WorkerLost
from paceline.wire.ids import PeerId
from paceline.wire.messages import (
    BlockPiece,
    BlockRequest,
    Holdings,
    HoldingsRequest,
    Message,
    OpenStage,
    PeerAddress,
    SessionMessage,
    Status,
    StatusRequest,
)
from paceline.wire.offers import Service
from paceline.wire.releases import SignedRelease

_log = logging.getLogger("paceline.node")

_GOODBYE_S = 3.0

SESSION_MESSAGES = get_args(SessionMessage)


class Node:
    """`details`: extra facts for the status (device, counters of the transport). `services` are loaded and measured."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        services: list[LoadedService],
        config: NodeConfig | None = None,
        *,
        blocks: BlockSource | None = None,
        details: Callable[[], dict[str, Any]] = dict,
        unix_time: Callable[[], float],
        links: LinksConfig | None = None,
        engine: Engine | None = None,
        on_rest: Callable[[], None] = lambda: None,
        spill: Callable[[], Spill] | None = None,
    ) -> None:
        self.config = config or NodeConfig()
        self.directory = directory
        self.links = Links(transport, self._on_message, self._on_lost, links or LinksConfig(), on_up=self._on_up)
        self.me = PeerId(transport.address.peer)
        self.engine = engine or EngineThread()
        self.table = SessionTable(
            self.me,
            services,
            self._send,
            self.config.journal_bytes,
            spill=spill,
            shared_prefixes=self.config.shared_prefixes,
        )
        self.loop = StageLoop(
            self.table,
            self.engine,
            most_positions=self.config.most_positions,
            orphan_s=self.config.orphan_s,
            tracing=Tracing(unix_time),
            on_rest=on_rest,
        )
        self.surroundings = Surroundings(self)
        self.offering = Offering(self, unix_time)
        self.lanes = transport.lanes
        self.reachability = Reachability(self, transport.doors, unix_time) if transport.doors is not None else None
        self.desk = BlockDesk(self.links, blocks or NoBlocks(), self.config.upload_bytes_per_s, lanes=self.lanes)
        self.fetcher: Fetcher | None = None
        """Brings blocks from other nodes, where this one is built to."""
        self.unannounced: list[LoadedService] = []
        """Services that end when their last session has: they serve whoever rides, and are offered no more."""
        self.planned: tuple[Service, ...] = ()
        """What is about to be loaded: announced while nothing is served, so that no crowd piles up on one hole."""
        self.upgrades: Callable[[], dict[str, object]] = dict
        """What became of newer releases, for the status."""
        self.behind: Callable[[], list[dict[str, object]]] = list
        """How far what is served is behind what is released, for the status."""
        self.releases_refused: Mapping[str, int] = {}
        self.frontier: Callable[[], tuple[SignedRelease, ...]] = tuple
        self._details = details
        self.paused = False
        self.ready = trio.Event()
        self._leaving = trio.Event()

    # --- messages -----------------------------------------------------------------------------------------------

    def _on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        if isinstance(message, SESSION_MESSAGES):
            if isinstance(message, OpenStage):
                self._warm_up(message)
            self.loop.post(peer, message, payload)
        elif isinstance(message, StatusRequest):
            self.links.reply(peer, Status(message.request, msgspec.json.encode(self.status())))
        elif isinstance(message, BlockRequest | HoldingsRequest):
            self.desk.handle(peer, message)
        elif isinstance(message, BlockPiece | Holdings) and self.fetcher is not None:
            self.fetcher.on_message(peer, message, payload)

    def _warm_up(self, m: OpenStage) -> None:
        """Dial the neighbours that this stage will send to, while the prompt is still being computed elsewhere.

        Even those that failed just now: the owner has chosen them, so they may be back.
        """
        following = m.route[(m.index + 1) % len(m.route)]
        for to in (following.at, *following.standbys):
            self.links.want(to, now=True)

    def _on_lost(self, peer: PeerId, error: PacelineError) -> None:
        _log.info("link lost", {"node": self.me, "peer": peer, "code": error.code})
        self.loop.link_lost(peer)
        if self.fetcher is not None:
            self.fetcher.on_lost(peer)

    def _on_up(self, peer: PeerId) -> None:
        self.loop.link_up(peer)

    def _send(self, effect: Send) -> None:
        if isinstance(effect.to, PeerAddress):
            self.links.send(effect.to, effect.message, effect.payload)
        else:
            self.links.reply(effect.to, effect.message, effect.payload)

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `leave` was called and the drain is over, or until cancelled. `ready` is set once announced.

        Raises WorkerLost, in a group, where a span lost one of its processes: the node says goodbye and ends.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self.engine.close)
            await stack.enter_async_context(self.links.run())
            await stack.enter_async_context(self.directory.run())
            try:
                await self._serve()
            except* WorkerLost:
                _log.error("a worker is lost", {"node": self.me})
                with trio.move_on_after(_GOODBYE_S):
                    await self.directory.withdraw()
                    await self.links.flush(1.0)
                raise

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.loop.run)
            nursery.start_soon(self.desk.run)
            await self.offering.announce()
            self.ready.set()
            _log.info("serving", {"node": self.me, "spans": [str(it.shard.span) for it in self.table.services]})
            nursery.start_soon(self.offering.run)
            nursery.start_soon(self.surroundings.run)
            if self.reachability is not None:
                nursery.start_soon(self.reachability.run)
            await self._leaving.wait()
            await self._drain()
            nursery.cancel_scope.cancel()

    def leave(self) -> None:
        """Begin the drain: no new sessions, let the present ones finish or move, then end."""
        self._leaving.set()

    async def pause(self, on: bool) -> None:
        """Serve nobody, by its owner's wish: sessions are handed over, the weights stay. Or serve again."""
        if on == self.paused or self._leaving.is_set():
            return
        self.paused = self.table.draining = on
        _log.info("paused" if on else "resumed", {"node": self.me})
        await self.offering.announce()
        if on:
            self.loop.send_away()

    def forget(self) -> None:
        """Lose all sessions, journals and connections at once, as a crash and an instant restart would."""
        self.loop.forget()
        for peer in self.links.peers():
            self.links.close(peer)

    async def _drain(self) -> None:
        self.table.draining = True
        _log.info("leaving", {"node": self.me, "sessions": len(self.table)})
        await self.offering.announce()
        await self._empty_within(self.config.drain_s)
        if len(self.table):
            self.loop.send_away()
            await self._empty_within(self.config.drain_s)
        await self.directory.withdraw()
        await self.links.flush(1.0)

    async def _empty_within(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while len(self.table):
                await trio.sleep(0.05)

    # --- status -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The account behind `paceline status`. Keys are stable; sizes in bytes, times in seconds."""
        steps, holds = self.loop.statistics, self.table.holds
        return {
            "peer": self.me,
            "agent": self.config.agent,
            "state": "paused" if self.paused else "draining" if self.table.draining else "serving",
            "services": [
                {
                    "model": s.model,
                    "revision": s.revision.hex(),
                    "span": str(s.shard.span),
                    "layers": s.shard.shape.layers,
                    "numerics": s.shard.numerics,
                    "decode_s": s.measured.decode_s,
                    "prefill_s_per_position": s.measured.prefill_s_per_position,
                    "decode_past_s": s.measured.decode_past_s,
                    "prefill_past_s": s.measured.prefill_past_s,
                    "kv_free": s.shard.kv_free,
                    "sessions": self.table.of_service(s),
                    "shadow": s.shadow,
                    "kv": s.shard.account() if isinstance(s.shard, Paged) else {},
                }
                for s in self.table.services
            ],
            "sessions": len(self.table),
            "journal_bytes": self.table.journal_bytes(),
            "engine": msgspec.to_builtins(steps),
            "banned": sorted(self.fetcher.banned) if self.fetcher else [],
            "fetched": msgspec.to_builtins(self.fetcher.reports[-4:]) if self.fetcher else [],
            "upgrades": self.upgrades(),
            "behind": self.behind(),
            "releases_refused": dict(self.releases_refused),
            "blocks_served": msgspec.to_builtins(self.desk.statistics),
            "holds_dropped": holds.dropped,
            "counters": dict(self.table.counters),
            "links": msgspec.to_builtins(self.links.statistics()),
            "uplink_bytes_per_s": self.links.uplink_bytes_per_s(),
            "rtt_s": {peer: self.links.rtt_s(peer) for peer in self.links.peers()},
            "directory": self.directory.statistics(),
            "reachability": self.reachability.account() if self.reachability is not None else {},
            **self._details(),
        }
