"""Stragglers: who is one, and that a session leaves him behind without losing a token."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio

from paceline.client.pace import RECENT, Pace, saved_s
from paceline.client.stragglers import Stragglers
from paceline.node.engine_thread import InlineEngine
from paceline.routing.plan import PlannedStage, RingPlan, RingRequest
from paceline.wire.ids import PeerId, Span
from paceline.wire.messages import PeerAddress
from tests.swarming import ToySwarm, collect, options, toy_swarm

PROMPT = [5, 3, 1]


def plan(*compute_s: float) -> RingPlan:
    """A ring of stages a, b, c … with so much compute each, and hops of 1 ms."""
    stages = tuple(
        PlannedStage(PeerAddress(name), Span(at, at + 1), "toy", each, 0.0, 0.001, 0.0, 0.0, 1e-5, kept=True)
        for at, (name, each) in enumerate(zip("abcdef", compute_s, strict=False))
    )
    token_s = sum(compute_s) + 0.001 * len(compute_s)
    return RingPlan("toy", bytes(32), len(stages), stages, token_s, 0.1, RingRequest(bytes(32)))


def told(pace: Pace, *tokens: tuple[float, ...], hop_s: float = 0.001) -> None:
    for token in tokens:
        pace.note([(int(hop_s * 1e6), 0, int(each * 1e6)) for each in token])


def begun(*compute_s: float) -> Pace:
    pace = Pace()
    pace.begin(plan(*compute_s))
    told(pace, *[compute_s] * 10)
    return pace


def test_five_times_slower_is_a_straggler_and_one_pause_is_none() -> None:
    pace = begun(0.010, 0.010, 0.010)
    told(pace, (0.010, 0.500, 0.010), *[(0.010, 0.010, 0.010)] * (RECENT - 1))
    assert not pace.slow(0.0)
    told(pace, *[(0.010, 0.050, 0.010)] * RECENT)
    assert pace.slow(0.0) == pytest.approx({"b": 0.040})
    assert pace.p95_s()["b"] >= 0.050


def test_what_all_have_in_common_makes_no_straggler() -> None:
    pace = begun(0.010, 0.010, 0.010)
    told(pace, *[(0.050, 0.060, 0.055)] * 12)
    assert not pace.slow(0.0)


def test_a_slow_link_is_charged_to_both_ends_in_halves() -> None:
    pace = begun(0.010, 0.010, 0.010)
    for _ in range(RECENT):
        pace.note([(1000, 0, 10_000), (101_000, 0, 10_000), (1000, 0, 10_000)])
    assert pace.slow(0.0) == pytest.approx({"a": 0.050, "b": 0.050})


def test_hops_that_are_all_late_are_a_busy_machine_and_no_straggler() -> None:
    pace = begun(0.010, 0.010)
    for late_us in (90_000, 70_000, 80_000, 95_000, 60_000) * 4:
        pace.note([(late_us, 0, 10_000), (late_us + 4_000, 0, 11_000)])
    assert not pace.slow(0.0)


def test_alone_he_is_compared_with_himself() -> None:
    pace = begun(0.010)
    assert not pace.slow(0.0)
    told(pace, *[(0.050,)] * RECENT)
    assert pace.slow(0.0) == pytest.approx({"a": 0.040})


def test_after_a_move_he_is_left_in_peace_for_a_while() -> None:
    pace = begun(0.010, 0.010)
    told(pace, *[(0.010, 0.050)] * RECENT)
    pace.moved(0.0)
    assert not pace.slow(1.9)
    assert pace.slow(2.1)
    pace.moved(2.1)
    assert not pace.slow(6.0)


def test_a_move_must_pay() -> None:
    old, new = plan(0.010, 0.010), plan(0.010, 0.012)
    assert saved_s(old, new, {"b": 0.040}, 0.062, done=10, left=100) == pytest.approx(0.038 * 100 - 0.6)
    assert not saved_s(old, new, {"b": 0.040}, 0.062, done=10, left=5)
    assert not saved_s(old, new, {"b": 0.004}, 0.026, done=10, left=10_000)


def test_a_price_fades() -> None:
    clock = [0.0]
    stragglers = Stragglers(lambda: clock[0])
    stragglers.note({PeerId("a"): 0.040})
    clock[0] = 60.0
    assert stragglers.excess_s() == pytest.approx({"a": 0.020})
    clock[0] = 600.0
    assert stragglers.excess_s() == {}


async def ring_with_a_spare(swarm: ToySwarm) -> None:
    for name, span in {"head": (0, 4), "middle": (4, 8), "spare": (4, 8), "tail": (8, 12)}.items():
        await swarm.node(name, span)


async def test_a_session_leaves_a_straggler_behind_and_no_token_changes(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await ring_with_a_spare(swarm)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=200))
            tokens = [(await stream.receive()).token for _ in range(20)]  # type: ignore[union-attr]
            slow = swarm.nodes[swarm.name_of(stream.result().route[1].peer)]
            assert isinstance(slow.engine, InlineEngine)
            slow.engine._step_s = 0.050
            while (piece := await stream.receive()) is not None:
                tokens.append(piece.token)
            result = stream.result()
            assert tokens == swarm.expected(PROMPT, 200)
            assert slow.me not in [rider.peer for rider in result.route]
            assert [failover.reason[:19] for failover in result.failovers] == ["slower than offered"]
            assert sum(took > 0.040 for took in result.intervals_s) < 20
            again = await client.generate(PROMPT, options(max_tokens=4))
            while await again.receive() is not None:
                pass
            assert slow.me not in [rider.peer for rider in again.result().route]


async def test_where_the_spare_is_far_away_the_session_begins_anew_in_another_city(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with toy_swarm(tmp_path) as swarm:
        cities = [["head-0", "tail-0"], ["head-1", "tail-1"]]
        for name in cities[0] + cities[1]:
            await swarm.node(name, (0, 6) if name.startswith("head") else (6, 12))
        for a, b in itertools.product(*cities):
            swarm.network.set_latency(swarm.nodes[a].me, swarm.nodes[b].me, 0.1)
        async with swarm.client() as client:
            await trio.sleep(10.0)
            stream = await client.generate(PROMPT, options(max_tokens=200))
            tokens = [(await stream.receive()).token for _ in range(20)]  # type: ignore[union-attr]
            before = {swarm.name_of(rider.peer) for rider in stream.result().route}
            slow = swarm.nodes[swarm.name_of(stream.result().route[0].peer)]
            assert isinstance(slow.engine, InlineEngine)
            slow.engine._step_s = 0.300
            tokens += await collect(stream)
            after = {swarm.name_of(rider.peer) for rider in stream.result().route}
            assert tokens == swarm.expected(PROMPT, 200)
            assert [set(cities[0]), set(cities[1])] in ([before, after], [after, before])
            assert len(stream.result().failovers) == 1


async def test_who_has_no_better_choice_stays(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        for span in [(0, 6), (6, 12)]:
            await swarm.node(str(span), span)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=60))
            slow = swarm.nodes["(6, 12)"]
            assert isinstance(slow.engine, InlineEngine)
            slow.engine._step_s = 0.050
            tokens = []
            while (piece := await stream.receive()) is not None:
                tokens.append(piece.token)
            assert tokens == swarm.expected(PROMPT, 60)
            assert stream.result().failovers == ()


async def test_ones_own_node_rides_at_both_ends(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("mine", (0, 2), (10, 12))
        for number in range(2):
            await swarm.node(f"other-{number}", (0, 6))
            await swarm.node(f"another-{number}", (6, 12))
        async with swarm.client() as client:
            mine = swarm.nodes["mine"].me
            stream = await client.generate(PROMPT, options(max_tokens=60, ends=frozenset({mine})))
            tokens = [(await stream.receive()).token for _ in range(10)]  # type: ignore[union-attr]
            route = stream.result().route
            assert (route[0].peer, route[-1].peer, len(route)) == (mine, mine, 4)
            swarm.kill(swarm.name_of(route[1].peer))
            while (piece := await stream.receive()) is not None:
                tokens.append(piece.token)
            assert tokens == swarm.expected(PROMPT, 60)
            assert {stream.result().route[0].peer, stream.result().route[-1].peer} == {mine}
