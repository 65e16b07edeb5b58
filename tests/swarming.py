"""A whole swarm inside one process for tests: memory transport, memory directory, toy shards, virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from paceline.client.core import ClientCore
from paceline.client.levels import Frontiers
from paceline.client.options import GenerateOptions
from paceline.client.stream import Stream
from paceline.client.swarm import Swarm
from paceline.consistency.journal import Spill
from paceline.consistency.owner import OwnerLimits
from paceline.dht.memory import MemoryDirectory, MemorySwarm
from paceline.engine.toy import ToyModel, ToyShard, toy_generate
from paceline.net.identity import Identity
from paceline.net.memory import MemoryNetwork
from paceline.net.memory_doors import MemoryDoors
from paceline.node.config import NodeConfig
from paceline.node.engine_thread import InlineEngine
from paceline.node.node import Node
from paceline.node.services import LoadedService
from paceline.store.store import Store
from paceline.wire.ids import PeerId, Revision, Span
from paceline.wire.offers import Measured
from paceline.wire.sampling import SamplingParams

LAYERS = 12
REVISION = Revision(bytes(range(32)))
MEASURED = Measured(decode_s=0.001, prefill_s_per_position=0.0001)


@dataclass
class ToySwarm:
    """Nodes by name, and what to do to them."""

    nursery: trio.Nursery
    folder: Path
    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(seed=1))
    swarm: MemorySwarm = field(default_factory=MemorySwarm)
    model: ToyModel = field(default_factory=lambda: ToyModel(layers=LAYERS))
    nodes: dict[str, Node] = field(default_factory=dict)
    scopes: dict[str, trio.CancelScope] = field(default_factory=dict)

    async def node(
        self,
        name: str,
        *spans: tuple[int, int],
        shadow: bool = False,
        config: NodeConfig | None = None,
        kv_positions: int = 1 << 16,
        spill: Callable[[], Spill] | None = None,
        measured: Measured = MEASURED,
        door: Callable[[str], MemoryDoors] | None = None,
    ) -> Node:
        """Start a node that serves `spans` and wait until it is announced. `door`: its place, by its peer id."""
        identity = Identity.ephemeral()
        transport = self.network.transport(identity.peer)
        transport.doors = door(identity.peer) if door is not None else None
        services = [
            LoadedService("toy", REVISION, ToyShard(self.model, Span(*span), kv_positions), measured, shadow)
            for span in spans
        ]
        node = Node(
            transport,
            MemoryDirectory(self.swarm, identity),
            services,
            config,
            unix_time=self.swarm.clock,
            engine=InlineEngine(),
            spill=spill,
        )
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await node.run()

        self.nursery.start_soon(run)
        await node.ready.wait()
        self.nodes[name], self.scopes[name] = node, scope
        return node

    def kill(self, name: str) -> None:
        """As SIGKILL: connections break at once, nothing is said."""
        self.network.kill(self.nodes[name].me)
        self.swarm.cut(self.nodes[name].me)
        self.scopes[name].cancel()

    def freeze(self, name: str) -> None:
        """As SIGSTOP, as far as others can see."""
        self.network.freeze(self.nodes[name].me)

    def name_of(self, peer: str) -> str:
        """The name a node was started under."""
        return next(name for name, node in self.nodes.items() if node.me == peer)

    @asynccontextmanager
    async def client(
        self,
        limits: OwnerLimits | None = None,
        frontiers: Frontiers | None = None,
        *,
        holds: Callable[[str], bool] = lambda peer: True,
    ) -> AsyncIterator[ClientCore]:
        """A client of this swarm. `holds`: whom its view has room for."""
        identity = Identity.ephemeral()
        swarm = Swarm(
            self.network.transport(identity.peer, listens=False),
            MemoryDirectory(self.swarm, identity, holds=holds),
            unix_time=self.swarm.clock,
        )
        core = ClientCore(swarm, Store(self.folder / "store"), limits, frontiers)
        async with core.run():
            yield core

    def expected(self, prompt: Sequence[int], n: int, params: SamplingParams | None = None) -> list[int]:
        """What one process would have generated."""
        return toy_generate(prompt, n, layers=LAYERS, params=params)


@asynccontextmanager
async def toy_swarm(folder: Path) -> AsyncIterator[ToySwarm]:
    """An empty swarm; everything in it ends with the block."""
    async with trio.open_nursery() as nursery:
        yield ToySwarm(nursery, folder)
        nursery.cancel_scope.cancel()


async def collect(stream: Stream) -> list[int]:
    """All tokens of a generation."""
    tokens = []
    while (piece := await stream.receive()) is not None:
        tokens.append(piece.token)
    return tokens


def options(**changes: object) -> GenerateOptions:
    """Options for the toy model, which has no end-of-sequence token."""
    return GenerateOptions(**{"model": "toy", "max_tokens": 16, **changes})  # type: ignore[arg-type]


def peer(node: Node) -> PeerId:
    """A node's peer id."""
    return node.me
