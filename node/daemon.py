"""The daemon: builds a real node from its settings, and runs it until it is told to leave.

The composition root of a node process. Everything is built here, once, in order: identity, store, shard (on the
engine's thread, measured there), transport, directory, node.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from paceline.consistency.staleness import STALE_S
from paceline.dht.kademlia import DirectoryConfig, KademliaDirectory
from paceline.dht.membership import MembershipConfig
from paceline.engine import default_model
from paceline.engine.loading import LoadConfig
from paceline.engine.memory import settle
from paceline.net.conditioner import conditioned
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.node.blocks import StoreBlocks
from paceline.node.config import NodeConfig
from paceline.node.engine_thread import EngineThread
from paceline.node.metrics import StatusCollector, exported, listening
from paceline.node.node import Node
from paceline.node.owner import obey, path_of
from paceline.node.services import LoadedService
from paceline.node.spill import SpillRoom
from paceline.node.staleness import Watch
from paceline.node.upgrade import Upgrader
from paceline.node.weights import Weights
from paceline.node.weights_fetch import FetchConfig, Fetcher
from paceline.node.weights_join import Joiner
from paceline.store import trust
from paceline.store.releases import Releases
from paceline.store.store import Store
from paceline.wire.ids import Span

if TYPE_CHECKING:
    from paceline.node.placing import Placing

AUTO = "auto"
"""In place of a span: the node chooses."""

JOIN_S = 60.0
"""How long a node looks for a member to join through: machines are often switched on together."""

Report = Callable[[str, int, int], None]
"""``(what, done, total)`` of long work; total 0 where it is not known."""


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """A node process. `ready_file`: written once the node is announced: JSON with `peer` and `bootstrap` multiaddrs.
    `until_stdin_closes`: leave when standard input ends, so that no node outlives the process that started it.
    """

    home: Path
    identity: Path
    load: LoadConfig
    bootstrap: tuple[str, ...] = ()
    net: NetConfig = field(default_factory=NetConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    ready_file: Path | None = None
    until_stdin_closes: bool = False
    crash_on_usr1: bool = False
    """For benchmarks of churn: SIGUSR1 loses every session, journal and connection, the weights stay loaded."""
    shadow: bool = False
    """Offer spare capacity as a standby of the same span."""
    trust: tuple[str, ...] = ()
    """Publishers believed beside those of the home folder, as `store.trust.Rule.parse` reads them."""
    follow: bool = True
    """Take up newer releases of the model's name."""
    download_bytes_per_s: float = 0.0
    """Of weights, from all peers together; 0: no limit."""
    store_bytes: int = 0
    """Of blocks in this machine's store, with those of its other processes; 0: what the disk has."""
    source: str = ""
    """A folder, GGUF file or hub id, for blocks that no peer sends; empty: none."""
    room_bytes: float = 0.0
    """Memory for weights, where the node chooses its span; 0: half of what is free."""
    moves: bool = False
    """A node that chose its span may change it later, where the swarm gains enough."""
    stale_after_s: float = STALE_S
    """How long what is served may be behind what is released before the log says so."""
    metrics: str | None = None
    """Port, or host and port, where Prometheus may ask; None: nowhere."""
    link_profile: str | None = None
    """A link profile's name or file, for `net.conditioner`; None: the network as it is."""


async def serve(config: DaemonConfig, report: Report, ready: Callable[[Node], None] = lambda node: None) -> None:
    """Load, announce, serve; returns after a drain. Raises typed errors for everything a user can mend."""
    identity = Identity.load_or_create(config.identity)
    store = Store(config.home / "store", config.store_bytes)
    engine = EngineThread()
    with ExitStack() as metrics:
        await _serve(config, identity, store, engine, report, ready, metrics)


async def _serve(
    config: DaemonConfig,
    identity: Identity,
    store: Store,
    engine: EngineThread,
    report: Report,
    ready: Callable[[Node], None],
    metrics: ExitStack,
) -> None:
    async with trio.open_nursery() as nursery:
        leaving = trio.Event()
        nursery.start_soon(_watch_signals, leaving, nursery.cancel_scope)
        if config.until_stdin_closes:
            nursery.start_soon(_watch_stdin, leaving)
        weights = _weights(config, identity, store)
        alone = not config.bootstrap
        joiner = Joiner(weights, engine, config.load, report, alone=alone, shadow=config.shadow, source=config.source)
        placed = config.load.span == AUTO
        here = None if placed else await trio.to_thread.run_sync(joiner.here)
        services = [] if here is None else [await joiner.load(here)]
        node = _build(config, identity, store, engine, services)
        node.releases_refused = weights.refused
        fetching = FetchConfig(bytes_per_s=config.download_bytes_per_s)
        node.fetcher = Fetcher(node.links, store, fetching, lanes=node.lanes)
        node.frontier = lambda: weights.frontier((it.model, it.revision) for it in node.table.services)
        nursery.start_soon(_join_and_tell, nursery, config, node, joiner, ready)
        nursery.start_soon(_leave_when, leaving, node)
        nursery.start_soon(_obey_owner, config, node)
        if config.metrics is not None:
            metrics.enter_context(exported(StatusCollector(node.status), *listening(config.metrics)))
        if config.crash_on_usr1:
            nursery.start_soon(_watch_crashes, node)
        if config.bootstrap:
            report("joining the swarm", 0, 0)
        await node.run()
        nursery.cancel_scope.cancel()


def _build(
    config: DaemonConfig, identity: Identity, store: Store, engine: EngineThread, services: list[LoadedService]
) -> Node:
    transport = Libp2pTransport(identity, config.net)
    directory = KademliaDirectory(
        transport,
        identity,
        DirectoryConfig(
            bootstrap=config.bootstrap,
            lifetime_s=config.node.offer_s,
            announce_s=config.node.announce_s,
            membership=MembershipConfig(join_timeout_s=JOIN_S),
        ),
    )
    began = time.monotonic()

    def details() -> dict[str, Any]:
        return {
            "transport": transport.statistics(),
            "uptime_s": round(time.monotonic() - began, 1),
            "rss_bytes": resident_bytes(),
            "pid": os.getpid(),
        }

    room = SpillRoom(config.home / "journals", config.node.journal_disk_bytes)
    return Node(
        conditioned(transport, config.link_profile),
        directory,
        services,
        config.node,
        blocks=StoreBlocks(store),
        details=details,
        unix_time=time.time,
        engine=engine,
        on_rest=settle,
        spill=room.journal if config.node.journal_disk_bytes else None,
    )


def resident_bytes() -> int:
    """This process's resident memory."""
    import psutil

    rss: int = psutil.Process().memory_info().rss
    return rss


def _weights(config: DaemonConfig, identity: Identity, store: Store) -> Weights:
    publisher = Identity.load_or_create(config.home / "identities" / "publisher")
    builtin = [bytes.fromhex(default_model.REVISION)]
    believed = trust.load(config.home, own=publisher.public, more=config.trust, revisions=builtin)
    return Weights(store, Releases(store, believed), publisher, time.time, lambda: identity.peer)


async def _placing(config: DaemonConfig, node: Node, joiner: Joiner) -> Placing:
    """For a node that finds its span by itself. Others spare the memory of what this needs."""
    from paceline.node.machine import subject_of
    from paceline.node.placing import Placing, PlacingConfig

    manifest = await joiner.manifest(node)

    async def load(span: Span) -> LoadedService:
        joiner.config = replace(config.load, span=str(span))
        return await joiner.join(node)

    subject = await trio.to_thread.run_sync(subject_of, manifest, config.load, config.room_bytes)
    return Placing(node, subject, load, time.time, PlacingConfig(jitter_s=2.0 if config.bootstrap else 0.0))


async def _join_and_tell(
    nursery: trio.Nursery, config: DaemonConfig, node: Node, joiner: Joiner, ready: Callable[[Node], None]
) -> None:
    await node.ready.wait()
    if not node.table.services:
        placing = await _placing(config, node, joiner) if config.load.span == AUTO else None
        node.table.services.append(await (joiner.join(node) if placing is None else placing.join()))
        await node.offering.announce()
        if placing is not None and config.moves:
            nursery.start_soon(placing.keep_looking)
    if config.follow and not _is_revision(config.load.model):
        upgrader = Upgrader(node, joiner.weights, functools.partial(joiner.beside, node))
        node.upgrades = upgrader.account
        nursery.start_soon(upgrader.run)
    watch = Watch(node, joiner.weights, config.stale_after_s)
    node.behind = watch.account
    nursery.start_soon(watch.run)
    if config.ready_file is not None:
        address = node.links.address
        members = [f"{control}/p2p/{address.peer}" for control in address.control]
        text = json.dumps({"peer": address.peer, "bootstrap": members, "data": address.data, "pid": os.getpid()})
        partial = config.ready_file.with_suffix(".part")
        partial.write_text(text)
        partial.replace(config.ready_file)
    ready(node)


def _is_revision(model: str) -> bool:
    """Whoever asks for a revision by its hash gets that one, whatever is released later."""
    return re.fullmatch("[0-9a-f]{64}", model) is not None


async def _obey_owner(config: DaemonConfig, node: Node) -> None:
    await node.ready.wait()
    await obey(node, path_of(config.home, config.identity.name))


async def _leave_when(leaving: trio.Event, node: Node) -> None:
    await leaving.wait()
    node.leave()


async def _watch_signals(leaving: trio.Event, scope: trio.CancelScope) -> None:
    """The first signal drains, the second ends at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if leaving.is_set():
                scope.cancel()
            leaving.set()


async def _watch_crashes(node: Node) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            node.forget()


async def _watch_stdin(leaving: trio.Event) -> None:
    stream = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    while await stream.receive_some(1024):
        pass
    leaving.set()
