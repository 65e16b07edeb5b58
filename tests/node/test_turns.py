"""More sessions than memory holds, in a whole ring: stages take turns by themselves, and everything finishes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from paceline.engine.pager import Pager
from paceline.engine.shard import Key, Paged, Work
from paceline.engine.toy import ToyModel, ToyShard
from paceline.node.node import Node
from paceline.wire.ids import Span
from tests.swarming import LAYERS, ToySwarm, collect, options, toy_swarm

PROMPT, ANSWER, SESSIONS = 20, 16, 7
NEED = PROMPT + ANSWER


class Turned(ToyShard):
    """A toy whose memory holds a few sessions; `run` and `closed` are remembered, nothing is really moved."""

    def __init__(self, span: Span, sessions: int) -> None:
        super().__init__(ToyModel(layers=LAYERS), span)
        self.pager = Pager(sessions * NEED)
        self.scopes: dict[Key, bytes] = {}
        self.batches: list[list[Work]] = []
        self.tidied = 0
        self._closed: list[Key] = []

    def share(self, key: Key, scope: bytes) -> None:
        self.scopes[key] = scope

    def turn(self, wanting: Sequence[Key]) -> list[Key]:
        return list(self.pager.turn(dict.fromkeys(wanting, NEED), trio.current_time()).run)

    def account(self) -> dict[str, int | float]:
        return {}

    @property
    def untidy(self) -> bool:
        return bool(self._closed)

    def tidy(self) -> None:
        self.tidied += len(self._closed)
        self._closed.clear()

    def close(self, key: Key) -> None:
        super().close(key)
        self.pager.close(key)
        self._closed.append(key)

    def step(self, batch: Sequence[Work]) -> list[object]:  # type: ignore[override]
        assert self.pager.held <= self.pager.budget
        assert all(work.key in self.pager for work in batch)
        self.batches.append(list(batch))
        return list(super().step(batch))


def turned(node: Node, sessions: int) -> Turned:
    (service,) = node.table.services
    shard = Turned(service.shard.span, sessions)
    assert isinstance(shard, Paged)
    node.table.services[0] = replace(service, shard=shard)
    return shard


async def ask(swarm: ToySwarm, found: dict[int, bool], number: int) -> None:
    prompt = [(number + 3) * k % 1000 for k in range(PROMPT)]
    await trio.sleep(0.004 * number)
    async with swarm.client() as client:
        stream = await client.generate(prompt, options(max_tokens=ANSWER))
        found[number] = await collect(stream) == swarm.expected(prompt, ANSWER)
        assert stream.result().failovers == ()


async def test_stages_that_choose_differently_do_not_wait_for_each_other(
    autojump_clock: object, tmp_path: Path
) -> None:
    found: dict[int, bool] = {}
    async with toy_swarm(tmp_path) as swarm:
        shards = [
            turned(await swarm.node(str(span), span), sessions)
            for span, sessions in (((0, 4), 3), ((4, 8), 2), ((8, 12), 3))
        ]
        async with trio.open_nursery() as nursery:
            for number in range(SESSIONS):
                nursery.start_soon(ask, swarm, found, number)
        await trio.sleep(1)
    assert found == dict.fromkeys(range(SESSIONS), True)
    for shard in shards:
        assert shard.tidied == SESSIONS
        assert len(set(shard.scopes.values())) == SESSIONS, "one owner's prefixes are his alone"


async def test_decode_steps_ride_before_prompts(autojump_clock: object, tmp_path: Path) -> None:
    found: dict[int, bool] = {}
    async with toy_swarm(tmp_path) as swarm:
        shard = turned(await swarm.node("all", (0, 12)), SESSIONS)
        async with trio.open_nursery() as nursery:
            for number in range(SESSIONS):
                nursery.start_soon(ask, swarm, found, number)
    assert all(found.values())
    for batch in shard.batches:
        sizes = [work.n > 1 for work in batch]
        assert sizes == sorted(sizes)
    assert any(len({work.n for work in batch}) > 1 for batch in shard.batches)
