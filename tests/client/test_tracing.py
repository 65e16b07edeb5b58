"""A traced session tells where each token's time went, and the parts are the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from paceline.client.results import Piece
from tests.swarming import ToySwarm, options, toy_swarm

PROMPT = [5, 3, 1]


async def ring(swarm: ToySwarm) -> None:
    for span in [(0, 4), (4, 8), (8, 12)]:
        await swarm.node(str(span), span)


async def traced(swarm: ToySwarm, trace: bool) -> tuple[list[Piece], list[float]]:
    async with swarm.client() as client:
        stream = await client.generate(PROMPT, options(max_tokens=40, trace=trace, avoid_stragglers=False))
        pieces = []
        while (piece := await stream.receive()) is not None:
            pieces.append(piece)
        return pieces, list(stream.result().intervals_s)


async def test_hops_waits_and_computing_add_up_to_the_time_of_a_token(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await ring(swarm)
        pieces, intervals = await traced(swarm, trace=True)
        assert all(len(piece.timings) == 3 for piece in pieces)
        for piece, took in list(zip(pieces[1:], intervals, strict=True))[1:]:
            parts = sum(part for stage in piece.timings for part in stage)
            assert parts / 1e6 == pytest.approx(took, rel=0.05, abs=2e-5)
            assert all(compute >= 1000 for _, _, compute in piece.timings)  # the toy engine's step is a millisecond


async def test_the_sum_around_a_ring_knows_no_clocks_error(autojump_clock: object, tmp_path: Path) -> None:
    """One machine's clock is an hour ahead: its hops are nonsense, their sum is not."""
    async with toy_swarm(tmp_path) as swarm:
        await ring(swarm)
        ahead = swarm.nodes["(4, 8)"].loop.tracing
        ahead._unix_time = lambda: trio.current_time() + swarm_epoch(swarm) + 1000.0
        pieces, intervals = await traced(swarm, trace=True)
        for piece, took in list(zip(pieces[1:], intervals, strict=True))[1:]:
            hops = [hop for hop, _, _ in piece.timings]
            assert hops[1] > 9e8 > -9e8 > hops[2]
            parts = sum(part for stage in piece.timings for part in stage)
            assert parts / 1e6 == pytest.approx(took, rel=0.05, abs=2e-5)


def swarm_epoch(swarm: ToySwarm) -> float:
    return swarm.swarm.clock() - trio.current_time()


async def test_without_tracing_nothing_is_told(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await ring(swarm)
        pieces, _ = await traced(swarm, trace=False)
        assert not any(piece.timings for piece in pieces)
        assert not any(node.loop.tracing._came for node in swarm.nodes.values())
