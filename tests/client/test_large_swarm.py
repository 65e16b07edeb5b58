"""A client whose view has no room for everybody: what it lacks is asked for by stretches of layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.client.core import ClientCore
from paceline.dht import stretches
from paceline.dht.memory import MemoryDirectory
from paceline.wire.errors import NoRoute
from tests.swarming import REVISION, ToySwarm, collect, options, toy_swarm

PROMPT = [5, 3, 1, 4]
SPANS = {"head": (0, 4), "middle": (4, 8), "tail": (8, 12)}


async def replicated(swarm: ToySwarm) -> None:
    for name, span in SPANS.items():
        await swarm.node(name, span)
        await swarm.node(f"{name}-2", span)


def asked(client: ClientCore) -> list[str]:
    directory = client.swarm.directory
    assert isinstance(directory, MemoryDirectory)
    return directory.asked


async def test_a_repair_asks_for_the_lost_spans_stretch_only(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await replicated(swarm)
        seen = {swarm.nodes[name].me for name in SPANS}
        async with swarm.client(holds=lambda peer: peer in seen) as client:
            stream = await client.generate(PROMPT, options(max_tokens=40))
            tokens = [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
            assert asked(client) == []
            swarm.kill("tail")
            assert tokens + await collect(stream) == swarm.expected(PROMPT, 40)
            assert [swarm.name_of(rider.peer) for rider in stream.result().route] == ["head", "middle", "tail-2"]
            assert set(asked(client)) == {stretches.text(REVISION, 1)}, "layers 8 to 11 of 12"
            offers = await client.offers()
            assert swarm.nodes["tail-2"].me in {offer.peer for offer in offers}


async def test_a_first_ring_is_completed_by_what_the_view_lacks(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await replicated(swarm)
        seen = {swarm.nodes[name].me for name in ("head", "head-2")}
        async with swarm.client(holds=lambda peer: peer in seen) as client:
            stream = await client.generate(PROMPT, options())
            assert await collect(stream) == swarm.expected(PROMPT, 16)
            assert asked(client) == [stretches.text(REVISION, 0), stretches.text(REVISION, 1)]


async def test_who_sees_everybody_asks_nobody(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("head", (0, 4))
        async with swarm.client() as client:
            with pytest.raises(NoRoute):
                await client.generate(PROMPT, options(timeout_s=0.5))
            assert asked(client) == []
