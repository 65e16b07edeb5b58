"""One node process of ``bench.ring``: everything real but the model, whose layers take a told time each.

``python -m bench.ring_node --home … --name … --span 0:13 --layer-ms 1.5 --pace FILE …``. Node, protocol, links, link
profile, directory and measuring are those of `paceline node`; the shard is the exact toy (engine/toy.py), made to take
``layer-ms × layers × the number in FILE`` for each position of a decode step, and a tenth of that for each further one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from paceline.dht.kademlia import DirectoryConfig, KademliaDirectory
from paceline.dht.membership import MembershipConfig
from paceline.engine.measure import measure
from paceline.engine.shard import Output, Work
from paceline.engine.toy import ToyModel, ToyShard
from paceline.net.conditioner import conditioned
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.node.config import NodeConfig
from paceline.node.engine_thread import EngineThread, handoff_s
from paceline.node.node import Node
from paceline.node.services import LoadedService
from paceline.wire.ids import Revision, Span

LAYERS = 24
MODEL = ToyModel(layers=LAYERS)
REVISION = Revision(bytes(range(32)))
PREFILL_SHARE = 0.1


class PacedShard(ToyShard):
    """A toy that takes its time. `pace` is read at each step: 1 as offered, 5 five times as slow."""

    def __init__(self, span: Span, layer_s: float, pace: Path) -> None:
        super().__init__(MODEL, span)
        self._layer_s = layer_s
        self._pace = pace

    def step(self, batch: Sequence[Work]) -> list[Output]:
        began = time.perf_counter()
        outputs = super().step(batch)
        positions = sum(1.0 + PREFILL_SHARE * (work.n - 1) for work in batch)
        layers = max(len(self._spans[work.key]) for work in batch)
        takes = layers * self._layer_s * positions * float(self._pace.read_text())
        time.sleep(max(0.0, began + takes - time.perf_counter()))
        return outputs


async def serve(options: argparse.Namespace) -> None:
    """Until its standard input ends."""
    identity = Identity.load_or_create(options.home / options.name)
    engine = EngineThread()
    shard = PacedShard(Span.parse(options.span), options.layer_ms / 1e3, options.pace)
    measured = msgspec.structs.replace(await engine.run(measure, shard), fixed_s=await handoff_s(engine))
    config = NodeConfig(agent=f"ring/{options.name}")
    transport = Libp2pTransport(identity, NetConfig(control_port=options.port))
    directory = KademliaDirectory(
        transport, identity,
        DirectoryConfig(
            bootstrap=tuple(options.swarm), lifetime_s=config.offer_s, announce_s=config.announce_s,
            membership=MembershipConfig(join_timeout_s=120.0),
        ),
    )  # fmt: skip
    node = Node(
        conditioned(transport, str(options.profile)), directory,
        [LoadedService("toy", REVISION, shard, measured)], config, unix_time=time.time, engine=engine,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        await node.ready.wait()
        address = node.links.address
        members = [f"{control}/p2p/{address.peer}" for control in address.control]
        partial = options.ready.with_suffix(".part")
        partial.write_text(json.dumps({"peer": address.peer, "bootstrap": members}))
        partial.replace(options.ready)
        stdin = trio.lowlevel.FdStream(0)
        while await stdin.receive_some(1024):
            pass
        nursery.cancel_scope.cancel()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--span", required=True)
    parser.add_argument("--layer-ms", type=float, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--swarm", nargs="*", default=[])
    for path in ("home", "pace", "profile", "ready"):
        parser.add_argument(f"--{path}", type=Path, required=True)
    trio.run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
