"""A node whose span lost one of its processes says goodbye and ends with the error; its sessions go on elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from paceline.dht.memory import MemoryDirectory
from paceline.engine.toy import ToyShard
from paceline.net.identity import Identity
from paceline.node.engine_thread import InlineEngine
from paceline.node.node import Node
from paceline.node.services import LoadedService
from paceline.wire.errors import WorkerLost
from paceline.wire.ids import Span
from tests.swarming import MEASURED, REVISION, ToySwarm, collect, options, toy_swarm


class Crippled(ToyShard):
    """Loses a process when it is told to."""

    lost = False

    def check(self) -> None:
        if self.lost:
            raise WorkerLost("one is gone")

    def end(self) -> None:
        """Nobody computes along."""


async def cripple_to_be(swarm: ToySwarm) -> tuple[Node, Crippled]:
    identity = Identity.ephemeral()
    shard = Crippled(swarm.model, Span(4, 12), 1 << 16)
    node = Node(
        swarm.network.transport(identity.peer),
        MemoryDirectory(swarm.swarm, identity),
        [LoadedService("toy", REVISION, shard, MEASURED)],
        unix_time=swarm.swarm.clock,
        engine=InlineEngine(),
    )
    return node, shard


@pytest.mark.parametrize("busy", [False, True])
async def test_a_node_that_lost_a_worker_ends_and_says_so(autojump_clock: object, tmp_path: Path, busy: bool) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("head", (0, 4))
        node, shard = await cripple_to_be(swarm)
        ended: list[float] = []

        async def run() -> None:
            with pytest.RaisesGroup(WorkerLost, allow_unwrapped=True):
                await node.run()
            ended.append(trio.current_time())

        swarm.nursery.start_soon(run)
        await node.ready.wait()
        async with swarm.client() as client:
            stream = await client.generate([1, 2, 3], options(max_tokens=40)) if busy else None
            if stream is not None:
                assert await stream.receive() is not None
            await swarm.node("spare", (4, 12))
            lost_at = trio.current_time()
            shard.lost = True
            if stream is not None:
                assert len(await collect(stream)) == 39
            while not ended:
                await trio.sleep(0.1)
            assert ended[0] - lost_at <= node.config.announce_s + 1.0
            assert node.me not in {offer.peer for offer in await client.swarm.directory.offers()}
