"""What a client remembers of a peer that died: not taken again while its offer lives, taken again when it is back, and
at the price of what his failures cost on average.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import trio

from paceline.client.losses import HALF_LIFE_S, Losses
from paceline.wire.errors import InvalidRequest
from paceline.wire.ids import PeerId
from tests.swarming import ToySwarm, collect, options, toy_swarm

PROMPT = [5, 3, 1, 4, 1, 5, 9, 2, 6]
SPANS = {"head": (0, 4), "middle": (4, 8), "tail": (8, 12)}


async def replicated(swarm: ToySwarm, *, shadow: bool = False) -> None:
    for name, span in SPANS.items():
        await swarm.node(name, span, shadow=shadow)
        await swarm.node(f"{name}-2", span, shadow=shadow)


async def test_a_new_session_does_not_pick_the_peer_whose_link_just_fell(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await replicated(swarm)
        async with swarm.client() as client:
            first = await client.generate(PROMPT, options())
            await collect(first)
            victim = first.result().route[1].peer
            swarm.network.kill(victim)
            await trio.sleep(0.1)
            assert victim in {offer.peer for offer in await client.offers()}, "its offer lives on"
            second = await client.generate(PROMPT, options())
            assert await collect(second) == swarm.expected(PROMPT, 16)
            assert second.result().failovers == ()


def test_losses_become_a_rate_that_fades() -> None:
    clock = [0.0]
    losses = Losses(lambda: clock[0])
    losses.note([PeerId("a"), PeerId("b")])
    clock[0] = HALF_LIFE_S
    losses.note([PeerId("a")])
    rate = math.log(2.0) / HALF_LIFE_S
    assert losses.per_s() == pytest.approx({"a": 1.5 * rate, "b": 0.5 * rate})
    clock[0] = 8 * HALF_LIFE_S
    assert losses.per_s() == {}


async def test_of_two_equals_the_one_that_was_never_lost_rides(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await replicated(swarm)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=40))
            tokens = [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
            lost = stream.result().route[1].peer
            swarm.network.cut(PeerId(client.swarm.links.address.peer), PeerId(lost))
            assert tokens + await collect(stream) == swarm.expected(PROMPT, 40)
            assert lost not in [rider.peer for rider in stream.result().route]
            await trio.sleep(20.0)
            assert lost in client.swarm.losses.per_s()
            again = await client.generate(PROMPT, options())
            await collect(again)
            assert lost not in [rider.peer for rider in again.result().route]


async def test_a_dead_peer_is_no_standby(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await replicated(swarm, shadow=True)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=400))
            tokens = [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
            head = stream.ride.owner.route[0]
            assert [len(stage.standbys) for stage in stream.ride.owner.route] == [1, 1, 1]
            swarm.kill(swarm.name_of(head.at.peer))
            tokens += [(await stream.receive()).token for _ in range(20)]  # type: ignore[union-attr]
            everybody = {at.peer for stage in stream.ride.owner.route for at in (stage.at, *stage.standbys)}
            assert stream.ride.owner.route[0].at == head.standbys[0]
            assert head.at.peer not in everybody
            assert tokens + await collect(stream) == swarm.expected(PROMPT, 400)
            assert [failover.tier.value for failover in stream.result().failovers] == ["shadow"]


async def test_the_only_holder_is_tried_although_its_link_fell(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        for name, span in SPANS.items():
            await swarm.node(name, span)
        async with swarm.client() as client:
            await collect(await client.generate(PROMPT, options()))
            client.swarm.links.close(swarm.nodes["middle"].me)
            stream = await client.generate(PROMPT, options())
            assert await collect(stream) == swarm.expected(PROMPT, 16)


async def test_sessions_that_draw_share_the_replicas(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await replicated(swarm)
        async with swarm.client() as client:
            heads = set()
            for _ in range(24):
                stream = await client.generate(PROMPT, options(max_tokens=2, objective="throughput"))
                assert await collect(stream) == swarm.expected(PROMPT, 2)
                heads.add(swarm.name_of(stream.result().route[0].peer))
            assert heads == {"head", "head-2"}
            with pytest.raises(InvalidRequest, match="objective"):
                await client.generate(PROMPT, options(objective="fame"))
