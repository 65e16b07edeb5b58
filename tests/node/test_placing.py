"""Nodes that find their span by themselves: a crowd covers everything, a hole is filled, and no layer is left bare."""

from __future__ import annotations

import random
from pathlib import Path

import trio

from paceline.dht.memory import MemoryDirectory
from paceline.engine.toy import ToyShard
from paceline.net.identity import Identity
from paceline.node.engine_thread import InlineEngine
from paceline.node.node import Node
from paceline.node.placing import Placing, PlacingConfig, Subject
from paceline.node.services import LoadedService
from paceline.routing.placement import Device
from paceline.wire.ids import Span
from paceline.wire.offers import Measured, Service
from tests.swarming import LAYERS, MEASURED, REVISION, ToySwarm, collect, options, toy_swarm

BLANK = Service("toy", REVISION, 0, 1, LAYERS, 4, "toy-i64", Measured(0.0, 0.0), 0, 4096)
LOADING_S = 3.0


async def newcomer(swarm: ToySwarm, name: str, capacity: int, span: Span | None = None) -> Placing:
    """A node without services, on its way; it serves once its `join` returned."""
    identity = Identity.ephemeral()
    services = [] if span is None else [service(swarm, span)]
    node = Node(
        swarm.network.transport(identity.peer), MemoryDirectory(swarm.swarm, identity), services,
        unix_time=swarm.swarm.clock, engine=InlineEngine(),
    )  # fmt: skip
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await node.run()

    swarm.nursery.start_soon(run)
    await node.ready.wait()
    swarm.nodes[name], swarm.scopes[name] = node, scope

    async def load(wanted: Span) -> LoadedService:
        await trio.sleep(LOADING_S)
        return service(swarm, wanted)

    subject = Subject(BLANK, Device(MEASURED.decode_s / capacity, capacity))
    return Placing(node, subject, load, swarm.swarm.clock, PlacingConfig(look_s=20.0), random.Random(name))


def service(swarm: ToySwarm, span: Span) -> LoadedService:
    return LoadedService("toy", REVISION, ToyShard(swarm.model, span, 1 << 16), MEASURED)


async def serve(swarm: ToySwarm, name: str, placing: Placing) -> None:
    node = swarm.nodes[name]
    node.table.services.append(await placing.join())
    await node.offering.announce()


def held(swarm: ToySwarm) -> list[int]:
    """Replicas per layer."""
    spans = [s.shard.span for node in swarm.nodes.values() for s in node.table.services]
    return [sum(layer in span for span in spans) for layer in range(LAYERS)]


async def test_a_crowd_that_starts_together_covers_everything(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        placings = {f"n{k}": await newcomer(swarm, f"n{k}", 4) for k in range(6)}
        async with trio.open_nursery() as nursery:
            for name, placing in placings.items():
                nursery.start_soon(serve, swarm, name, placing)
        assert min(held(swarm)) >= 1
        assert sum(held(swarm)) == 24


async def test_a_plan_is_announced_as_joining_and_nobody_routes_over_it(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        placing = await newcomer(swarm, "a", LAYERS)
        swarm.nursery.start_soon(serve, swarm, "a", placing)
        await trio.sleep(2.0)
        (offer,) = await swarm.nodes["a"].directory.offers("toy")
        assert (offer.state, offer.services[0].span) == ("joining", Span(0, LAYERS))
        async with swarm.client() as client:
            view = await client.swarm.view("toy")
            assert not view.coverage(REVISION).complete
            await trio.sleep(LOADING_S + 2.0)
            assert (await client.swarm.view("toy")).coverage(REVISION).complete


async def test_a_hole_is_filled_and_a_running_session_does_not_notice(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("a", (0, 6))
        await swarm.node("b", (6, 12))
        await swarm.node("c", (6, 12))
        placing = await newcomer(swarm, "mover", 6, Span(0, 6))
        swarm.kill("b")
        swarm.kill("c")
        swarm.nursery.start_soon(placing.keep_looking)
        await trio.sleep(90.0)
        assert [s.shard.span for s in swarm.nodes["mover"].table.services] == [Span(6, 12)]
        async with swarm.client() as client:
            stream = await client.generate([1, 2, 3], options())
            assert await collect(stream) == swarm.expected([1, 2, 3], 16)


async def test_the_last_holder_stays(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        placing = await newcomer(swarm, "only", 6, Span(0, 6))
        swarm.nursery.start_soon(placing.keep_looking)
        await trio.sleep(200.0)
        assert [s.shard.span for s in swarm.nodes["only"].table.services] == [Span(0, 6)]


async def test_two_that_leave_one_span_at_once_do_not_leave_it_bare(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        movers = {name: await newcomer(swarm, name, 6, Span(0, 6)) for name in ("a", "b")}
        async with trio.open_nursery() as nursery:
            for placing in movers.values():
                nursery.start_soon(placing.move, Span(6, 12))
        spans = [s.shard.span for node in swarm.nodes.values() for s in node.table.services]
        assert Span(0, 6) in spans
        assert Span(6, 12) in spans
