"""A swarm in one process changes its revision under load: nothing fails, nothing is mixed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from paceline.cli.status import behind
from paceline.client.levels import Frontiers
from paceline.consistency.upgrading import Patience
from paceline.engine.toy import ToyModel, ToyShard, generate
from paceline.gateway.metrics import Metrics
from paceline.net.identity import Identity
from paceline.node.node import Node
from paceline.node.services import LoadedService
from paceline.node.staleness import Watch
from paceline.node.upgrade import UpgradeConfig, Upgrader
from paceline.node.weights import Weights
from paceline.node.weights_fetch import Fetcher
from paceline.store.manifest import Manifest
from paceline.store.releases import Releases
from paceline.store.store import Store
from paceline.store.trust import Rule, Trust
from paceline.wire.errors import LevelUnmet, PacelineError
from paceline.wire.ids import Revision
from paceline.wire.sampling import SamplingParams
from tests.swarming import LAYERS, MEASURED, ToySwarm, collect, options, toy_swarm

PUBLISHER = Identity.ephemeral()
SPANS = ((0, 4), (4, 8), (8, 12))
CONFIG = UpgradeConfig(look_s=0.5, patience=Patience(turn_s=20.0, views_s=16.0))


def manifest(store: Store, fill: int) -> Manifest:
    """A toy's revision: what differs is one layer's block, and the revision names the toy's weights."""
    blocks = tuple(store.put(bytes([layer, fill if layer == 5 else 0])) for layer in range(LAYERS))
    return Manifest(
        name="toy",
        family="toy",
        architecture="Toy",
        config={},
        dtype="i64",
        hidden=4,
        vocab=16,
        max_context=64,
        layers=blocks,
        embed=blocks[0],
        head=blocks[0],
    )


def toy_of(revision: bytes) -> ToyModel:
    return ToyModel.of_revision(revision, LAYERS)


class Lab:
    """Toy nodes with weights, all with one store."""

    def __init__(self, swarm: ToySwarm, folder: Path) -> None:
        self.swarm = swarm
        self.store = Store(folder / "shared")
        self.upgraders: dict[str, Upgrader] = {}

    def publish(self, fill: int, share: float = 1.0) -> Revision:
        made = manifest(self.store, fill)
        self.store.put_manifest(made)
        releases = Releases(self.store, Trust((Rule(PUBLISHER.public),)))
        releases.publish(PUBLISHER, made, self.swarm.swarm.clock(), share)
        return made.revision

    async def node(self, name: str, span: tuple[int, int], revision: Revision, *, follows: bool = True) -> None:
        node = await self.swarm.node(name, span)
        service = node.table.services[0]
        node.table.services[0] = self.loaded(revision, service)
        self.follow(name, node, follows)
        await node.offering.announce()

    def loaded(self, revision: Revision, like: LoadedService) -> LoadedService:
        return LoadedService("toy", revision, ToyShard(toy_of(revision), like.shard.span, 1 << 16), MEASURED)

    def follow(self, name: str, node: Node, follows: bool) -> None:
        releases = Releases(self.store, Trust((Rule(PUBLISHER.public),)))
        weights = Weights(self.store, releases, PUBLISHER, self.swarm.swarm.clock, lambda: node.me)
        node.fetcher = Fetcher(node.links, self.store)
        node.frontier = lambda: weights.frontier((it.model, it.revision) for it in node.table.services)

        async def beside(made: Manifest, running: LoadedService) -> LoadedService:
            await trio.sleep(1.0)
            return self.loaded(made.revision, running)

        self.upgraders[name] = Upgrader(node, weights, beside, CONFIG)
        if follows:
            self.swarm.nursery.start_soon(self.upgraders[name].run)

    def revisions(self) -> set[bytes]:
        return {service.revision for node in self.swarm.nodes.values() for service in node.table.services}


async def test_eight_clients_see_no_seam(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        for number, span in enumerate(SPANS * 2):
            await lab.node(f"n{number}", span, first)
        named: list[bytes] = []
        over = trio.Event()

        async def client(number: int) -> None:
            async with swarm.client() as core:
                turn = 0
                while not over.is_set():
                    prompt = [number, turn, 7]
                    stream = await core.generate(prompt, options(max_tokens=12))
                    tokens, revision = await collect(stream), bytes.fromhex(stream.result().revision)
                    assert tokens == generate(toy_of(revision), prompt, 12, SamplingParams())
                    named.append(revision)
                    turn += 1
                    await trio.sleep(1.5)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(client, number)
            await trio.sleep(2)
            second = lab.publish(2)
            with trio.fail_after(200):
                while lab.revisions() != {second}:
                    await trio.sleep(0.5)
            await trio.sleep(2)
            over.set()
        assert set(named) == {first, second}
        assert named[-1] == second
        assert all(not node.unannounced for node in swarm.nodes.values())
        assert all(upgrader.upgraded == [second.hex()] for upgrader in lab.upgraders.values())


async def test_a_session_in_flight_ends_on_its_revision(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        for number, span in enumerate(SPANS):
            await lab.node(f"n{number}", span, first)
        async with swarm.client() as core:
            await trio.sleep(1)
            stream = await core.generate([1, 2, 3], options(max_tokens=1500))
            tokens = [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
            second = lab.publish(2)
            await trio.sleep(4)
            assert second in lab.revisions()
            tokens += await collect(stream)
            assert stream.result().revision == first.hex()
            assert tokens == generate(toy_of(first), [1, 2, 3], 1500, SamplingParams())
            assert not stream.result().failovers
            with trio.fail_after(100):
                while first in lab.revisions():
                    await trio.sleep(0.5)


async def test_levels_of_a_client_while_a_swarm_is_between_two_revisions(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        await lab.node("whole", (0, 12), first, follows=False)
        second = lab.publish(2)
        await swarm.nodes["whole"].offering.announce()
        async with swarm.client() as core:

            async def revision(level: str) -> str:
                stream = await core.generate([1], options(consistency=level, timeout_s=1.0))
                await collect(stream)
                return stream.result().revision

            assert await revision("available") == first.hex()
            assert await revision("bounded(1)") == first.hex()
            assert await revision(f"pinned({first.hex()})") == first.hex()
            for level in ("strong", "bounded(0)", f"pinned({second.hex()})"):
                with pytest.raises(LevelUnmet):
                    await revision(level)
            await lab.node("new", (0, 12), second)
            assert await revision("strong") == second.hex()
            assert await revision("available") == second.hex()
            assert await revision(f"pinned({first.hex()})") == first.hex()


async def test_going_back_is_a_newer_release_of_older_weights(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        second = lab.publish(2)
        await lab.node("whole", (0, 12), second)
        assert lab.publish(1) == first
        with trio.fail_after(100):
            while lab.revisions() != {first}:
                await trio.sleep(0.5)


async def test_a_canary_runs_beside_the_old_ring_is_tried_by_its_share_and_ends(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        for number, span in enumerate(SPANS * 2):
            await lab.node(f"n{number}", span, first)
        async with swarm.client() as core:

            async def tried(seeds: range, level: str = "available") -> dict[int, bytes]:
                found = {}
                for seed in seeds:
                    stream = await core.generate([1, seed], options(max_tokens=2, seed=seed, consistency=level))
                    await collect(stream)
                    found[seed] = bytes.fromhex(stream.result().revision)
                return found

            second = lab.publish(2, 0.3)
            with trio.fail_after(100):
                while set((await tried(range(12))).values()) != {first, second}:
                    await trio.sleep(0.5)
            await trio.sleep(30)
            held = [{it.revision for it in node.table.services} for node in swarm.nodes.values()]
            assert all(first in it for it in held)
            assert sum(second in it for it in held) == 3
            seen = await tried(range(40))
            frontier = core.frontiers.frontier("toy")
            assert {seed for seed, it in seen.items() if it == second} == {
                seed for seed in range(40) if frontier.drawn(f"seed {seed}".encode())
            }
            assert set(seen.values()) == {first, second}
            assert set((await tried(range(12), "strong")).values()) == {first}
            assert set((await tried(range(2), f"pinned({second.hex()})")).values()) == {second}
            assert lab.publish(1) == first
            with trio.fail_after(100):
                while lab.revisions() != {first}:
                    await trio.sleep(0.5)
            assert set((await tried(range(12))).values()) == {first}
            lab.publish(2, 0.3)
            await trio.sleep(20)
            lab.publish(2)
            with trio.fail_after(200):
                while lab.revisions() != {second}:
                    await trio.sleep(0.5)
            assert set((await tried(range(12), "strong")).values()) == {second}


async def test_who_is_quiet_is_heard_again_when_its_publisher_comes_back_to_it(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        await lab.node("whole", (0, 12), first)
        lab.publish(2)
        node = swarm.nodes["whole"]
        with trio.fail_after(100):
            while not node.unannounced:
                await trio.sleep(0.5)
        assert lab.publish(1) == first
        await trio.sleep(60)
        assert not node.unannounced
        assert lab.revisions() == {first}


async def test_a_node_that_stays_behind_says_so_and_so_does_its_client(
    autojump_clock: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        await lab.node("whole", (0, 12), first, follows=False)
        watch = Watch(swarm.nodes["whole"], lab.upgraders["whole"].weights, 60.0)
        swarm.nursery.start_soon(watch.run)
        async with swarm.client(frontiers=Frontiers(stale_after_s=60.0)) as core:

            async def asked() -> list[int]:
                await collect(await core.generate([1], options(max_tokens=1)))
                return [lag.releases for lag in core.frontiers.lags()]

            assert await asked() == [0]
            lab.publish(2)
            await trio.sleep(20)
            assert await asked() == [1]
            assert not any(lag["overdue"] for lag in watch.account())
            assert [lag["releases"] for lag in watch.account()] == [1]
            caplog.clear()
            await trio.sleep(90)
            assert await asked() == [1]
            assert await asked() == [1]
            said = [(record.name, record.getMessage()) for record in caplog.records if record.levelname == "WARNING"]
            assert said == [("paceline.node", "revision behind"), ("paceline.client", "revision behind")]
            (line,) = behind([{"peer": "x" * 20 + "thispeer", "behind": watch.account()}, {"peer": "silent"}])
            assert re.search(r"thispeer is behind.*toy [0-9a-f]{12} by 1 release for [12] min", line)
            page = Metrics(core.frontiers.lags).page().decode()
            assert f'paceline_revision_behind{{model="toy",revision="{first.hex()[:12]}"}} 1.0' in page
            lab.publish(1)
            await trio.sleep(10)
            assert await asked() == [0]
            assert [lag["overdue"] for lag in watch.account()] == [False]


async def test_a_failure_on_the_way_leaves_the_node_where_it_was(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        await lab.node("whole", (0, 12), first)

        async def fails(made: Manifest, running: LoadedService) -> LoadedService:
            raise PacelineError("no memory")

        lab.upgraders["whole"]._load = fails
        lab.publish(2)
        await trio.sleep(10)
        assert lab.revisions() == {first}
        assert "no memory" in lab.upgraders["whole"].trouble["toy"]
        async with swarm.client() as core:
            stream = await core.generate([1], options())
            assert await collect(stream) == generate(toy_of(first), [1], 16, SamplingParams())


async def test_releases_of_strangers_change_nothing(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        lab = Lab(swarm, tmp_path)
        first = lab.publish(1)
        await lab.node("whole", (0, 12), first)
        stranger = Identity.ephemeral()
        others = Store(tmp_path / "others")
        signed = Releases(others, Trust((Rule(stranger.public),))).publish(stranger, manifest(others, 9), 0.0)
        node = swarm.nodes["whole"]
        node.frontier = lambda: (signed,)
        await node.offering.announce()
        await trio.sleep(10)
        assert lab.revisions() == {first}
        frontiers = Frontiers(Trust((Rule(PUBLISHER.public),)))
        frontiers.absorb(await node.directory.offers())
        assert frontiers.frontier("toy").newest is None
