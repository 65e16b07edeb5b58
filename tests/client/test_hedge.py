"""A hedged first token: the quicker ring stays, the other is freed, and the text is the one of a single ring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from paceline.client.hedge import Hedge
from paceline.client.options import GenerateOptions
from paceline.client.stream import Stream
from paceline.consistency.owner import OwnerLimits
from paceline.wire.errors import NoRoute, PacelineError
from paceline.wire.ids import PeerId
from paceline.wire.messages import StageError
from paceline.wire.sampling import SamplingParams
from tests.swarming import ToySwarm, collect, options, toy_swarm

PROMPT = [5, 3, 1, 4, 1, 5, 9, 2, 6]
SPANS = {"head": (0, 4), "middle": (4, 8), "tail": (8, 12)}


@asynccontextmanager
async def twice(folder: Path) -> AsyncIterator[ToySwarm]:
    async with toy_swarm(folder) as swarm:
        for name, span in SPANS.items():
            await swarm.node(name, span)
            await swarm.node(f"{name}-2", span)
        yield swarm


async def begun(swarm: ToySwarm, stream: Stream) -> list[list[str]]:
    """Names of both rings, head first, before any message has arrived anywhere."""
    assert isinstance(stream.ride, Hedge)
    while len(stream.ride._plans) < 2:
        await trio.lowlevel.checkpoint()
    assert stream.ride.won is None
    return [[swarm.name_of(peer) for peer in plan] for plan in stream.ride._plans]


def hedging(**changes: object) -> GenerateOptions:
    """`max_stages`: of two that hold the same layers, one rides."""
    return options(hedge=True, max_stages=3, **changes)


def names(swarm: ToySwarm, stream: Stream) -> list[str]:
    return [swarm.name_of(rider.peer) for rider in stream.result().route]


def slow(swarm: ToySwarm, name: str, for_s: float) -> None:
    """All that is under way to and from a node, and all that follows, takes until `for_s` from now."""
    node = swarm.nodes[name].me
    swarm.network.freeze(node)

    async def go_on() -> None:
        await trio.sleep(for_s)
        swarm.network.thaw(node)

    swarm.nursery.start_soon(go_on)


def sessions(swarm: ToySwarm) -> dict[str, int]:
    return {name: len(node.table) for name, node in swarm.nodes.items() if len(node.table)}


async def test_a_slow_head_loses_and_is_freed(autojump_clock: object, tmp_path: Path) -> None:
    async with twice(tmp_path) as swarm, swarm.client() as client:
        stream = await client.generate(PROMPT, hedging(max_tokens=100))
        ring, other = await begun(swarm, stream)
        assert sorted(ring + other) == sorted(swarm.nodes)
        slow(swarm, ring[0], 1.0)
        began = trio.current_time()
        piece = await stream.receive()
        assert piece is not None
        assert trio.current_time() - began < 0.5
        tokens = [piece.token]
        assert names(swarm, stream) == other
        tokens += [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
        await trio.sleep(1.5)
        assert not set(sessions(swarm)) & set(ring), "the loser is freed"
        assert tokens + await collect(stream) == swarm.expected(PROMPT, 100)
        hedged = stream.result().hedged
        assert hedged is not None
        assert (hedged.won, hedged.rings, hedged.shared, hedged.lost_with) == (2, 2, (), "")
        assert [swarm.name_of(peer) for peer in hedged.lost_ring] == ring
        assert hedged.extra_positions == len(PROMPT)
        assert stream.result().failovers == ()
        await trio.sleep(1.0)
        assert sessions(swarm) == {}


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0, "seed": 7, "repetition_penalty": 1.2}])
async def test_tokens_are_those_of_one_ring_whoever_wins(
    autojump_clock: object, tmp_path: Path, sampled: dict[str, float]
) -> None:
    async with twice(tmp_path) as swarm, swarm.client() as client:
        params = SamplingParams(**sampled)  # type: ignore[arg-type]
        for late in (None, 0, 1):
            stream = await client.generate(PROMPT, hedging(**sampled))
            rings = await begun(swarm, stream)
            if late is not None:
                slow(swarm, rings[late][0], 0.2)
            assert await collect(stream) == swarm.expected(PROMPT, 16, params)
            hedged = stream.result().hedged
            assert hedged is not None
            assert late is None or hedged.won == 2 - late
            await trio.sleep(1.0)
        assert sessions(swarm) == {}
        plain = await client.generate(PROMPT, options(**sampled))
        assert await collect(plain) == swarm.expected(PROMPT, 16, params)
        assert plain.result().hedged is None


async def test_only_what_nobody_else_holds_is_shared(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("head", (0, 4))
        for name, span in [("middle", (4, 8)), ("tail", (8, 12)), ("middle-2", (4, 8)), ("tail-2", (8, 12))]:
            await swarm.node(name, span)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, hedging())
            assert await collect(stream) == swarm.expected(PROMPT, 16)
            hedged = stream.result().hedged
            assert hedged is not None
            assert hedged.rings == 2
            assert [swarm.name_of(peer) for peer in hedged.shared] == ["head"]
            await trio.sleep(1.0)
            assert sessions(swarm) == {}


async def test_where_there_is_one_ring_it_runs_alone(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm, swarm.client() as client:
        await swarm.node("all", (0, 12))
        stream = await client.generate(PROMPT, hedging())
        assert await collect(stream) == swarm.expected(PROMPT, 16)
        hedged = stream.result().hedged
        assert hedged is not None
        assert (hedged.won, hedged.rings, hedged.lost_ring, hedged.extra_positions) == (1, 1, (), 0)


@pytest.mark.parametrize("failing", [0, 1])
async def test_the_error_of_one_ring_does_not_fail_the_other(
    autojump_clock: object, tmp_path: Path, failing: int
) -> None:
    async with twice(tmp_path) as swarm, swarm.client() as client:
        stream = await client.generate(PROMPT, hedging())
        rings = await begun(swarm, stream)
        for ring in rings:
            slow(swarm, ring[2], 0.2)
        await trio.sleep(0.05)
        hedge = stream.ride
        assert isinstance(hedge, Hedge)
        owner, head = hedge._owners[failing], swarm.nodes[rings[failing][0]]
        refusal = StageError(owner.request.session, 0, owner.epoch, "invalid_request", "not by me")
        assert head.links.reply(PeerId(client.swarm.links.address.peer), refusal)
        assert await collect(stream) == swarm.expected(PROMPT, 16)
        hedged = stream.result().hedged
        assert hedged is not None
        assert (hedged.won, hedged.lost_with) == (2 - failing, "invalid_request")
        await trio.sleep(1.0)
        assert sessions(swarm) == {}


async def test_the_winner_may_be_repaired_by_the_losers_riders(autojump_clock: object, tmp_path: Path) -> None:
    async with twice(tmp_path) as swarm, swarm.client() as client:
        stream = await client.generate(PROMPT, hedging(max_tokens=100))
        ring, _ = await begun(swarm, stream)
        slow(swarm, ring[0], 0.3)
        tokens = [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
        winners = names(swarm, stream)
        swarm.kill(winners[1])
        assert tokens + await collect(stream) == swarm.expected(PROMPT, 100)
        assert names(swarm, stream)[1] == ring[1]
        assert len(stream.result().failovers) == 1


async def test_cancelling_frees_both(autojump_clock: object, tmp_path: Path) -> None:
    async with twice(tmp_path) as swarm, swarm.client() as client:
        stream = await client.generate(PROMPT, hedging())
        for ring in await begun(swarm, stream):
            slow(swarm, ring[2], 1.0)
        await trio.sleep(0.2)
        assert len(sessions(swarm)) >= 4
        stream.cancel()
        await stream.finished()
        assert stream.result().finish_reason == "cancelled"
        assert stream.result().tokens == ()
        await trio.sleep(3.0)
        assert sessions(swarm) == {}


async def test_where_no_ring_may_be_ridden_the_error_is_the_usual_one(autojump_clock: object, tmp_path: Path) -> None:
    async with twice(tmp_path) as swarm, swarm.client() as client:
        stream = await client.generate(PROMPT, hedging(trusted=frozenset()))
        with pytest.raises(NoRoute, match="trusted"):
            await collect(stream)


async def test_where_both_fail_there_is_one_typed_error(autojump_clock: object, tmp_path: Path) -> None:
    async with twice(tmp_path) as swarm, swarm.client(OwnerLimits(give_up_s=5.0)) as client:
        for node in swarm.nodes.values():
            await client.swarm.links.connect(node.links.address, 1.0)
        stream = await client.generate(PROMPT, hedging())
        for name in swarm.nodes:
            swarm.kill(name)
        with pytest.raises(PacelineError), trio.fail_after(200):
            await collect(stream)
        result = stream.result()
        assert result.tokens == ()
        assert result.hedged is not None
        assert result.hedged.won == 0
