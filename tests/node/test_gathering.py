"""Sessions of one ring fall into step, and nobody waits for those who do not come."""

from __future__ import annotations

from pathlib import Path

import trio

from paceline.node.gathering import Gathering
from tests.swarming import collect, options, toy_swarm

RING = ("a", "b")


def trips(gathering: Gathering, session: str, starts: list[float], trip: float) -> None:
    for start in starts:
        gathering.left(session, RING, start)
        gathering.came(session, start + trip)


def test_it_waits_for_who_is_near() -> None:
    gathering = Gathering()
    trips(gathering, "x", [0.0], 1.0)
    trips(gathering, "y", [0.3], 1.0)
    gathering.left("y", RING, 1.3 - 1.0 + 0.05)
    assert gathering.hold_until(["x"], full=8, now=1.0) > 1.3


def test_it_does_not_wait_for_who_is_far() -> None:
    gathering = Gathering()
    trips(gathering, "x", [0.0], 1.0)
    trips(gathering, "y", [0.0], 1.0)
    gathering.left("y", RING, 0.99)
    assert gathering.hold_until(["x"], full=8, now=1.0) == 1.0


def test_it_waits_for_nobody_in_another_ring_nor_past_a_full_group_nor_at_a_first_step() -> None:
    gathering = Gathering()
    trips(gathering, "x", [0.0], 1.0)
    gathering.left("y", ("a", "c"), 0.2)
    assert gathering.hold_until(["x"], full=8, now=1.0) == 1.0
    trips(gathering, "z", [0.1], 1.0)
    gathering.left("z", RING, 0.2)
    assert gathering.hold_until(["x"], full=1, now=1.0) == 1.0
    assert gathering.hold_until(["new"], full=8, now=1.0) == 1.0


def test_who_has_ended_is_forgotten() -> None:
    gathering = Gathering()
    trips(gathering, "x", [0.0], 1.0)
    trips(gathering, "y", [0.2], 1.0)
    gathering.left("y", RING, 0.2)
    gathering.keep({"x"})
    assert gathering.hold_until(["x"], full=8, now=1.0) == 1.0


async def test_sessions_of_a_ring_end_up_in_one_batch(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        for span in [(0, 4), (4, 8), (8, 12)]:
            await swarm.node(str(span), span)
        async with swarm.client() as client:
            ends: list[list[int]] = []

            async def one(number: int) -> None:
                await trio.sleep(0.0007 * number)
                stream = await client.generate([number, 2, 3], options(max_tokens=400))
                ends.append(await collect(stream))
                assert ends[-1] == swarm.expected([number, 2, 3], 400)

            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(one, number)
            for node in swarm.nodes.values():
                steps = node.loop.statistics
                assert steps.works / steps.steps > 3
