"""What a session may cost at most: a journal that overflowed falls to the next tier, long answers stay flat."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import trio

from paceline.engine.toy import HIDDEN, ToyModel, toy_generate
from paceline.node.config import NodeConfig
from paceline.node.spill import SpillRoom
from tests.swarming import LAYERS, ToySwarm, collect, options, toy_swarm

PROMPT = [5, 3, 1, 4, 1, 5, 9, 2, 6]
ROW = HIDDEN * 8
LONG = 10_000


@pytest.mark.parametrize(("rows", "disk", "tier"), [(10, 0, "tokens"), (10, 1 << 20, "journal"), (99, 0, "journal")])
async def test_a_journal_that_is_short_falls_to_the_next_tier(
    autojump_clock: object, tmp_path: Path, rows: int, disk: int, tier: str
) -> None:
    rooms = {}
    async with toy_swarm(tmp_path) as swarm:
        for name, span in {"head": (0, 4), "middle": (4, 8), "middle-2": (4, 8), "tail": (8, 12)}.items():
            rooms[name] = SpillRoom(tmp_path / "journals", disk)
            config = NodeConfig(journal_bytes=rows * ROW)
            await swarm.node(name, span, config=config, spill=rooms[name].journal)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=80))
            tokens = [(await stream.receive()).token for _ in range(40)]  # type: ignore[union-attr]
            victim = swarm.name_of(stream.result().route[1].peer)
            swarm.kill(victim)
            tokens += await collect(stream)
            assert tokens == swarm.expected(PROMPT, 80)
            result = stream.result()
            assert result.finish_reason == "length"
            assert result.failovers[-1].tier.value == tier
            assert ("journal was short" in result.failovers[-1].reason) == (tier == "tokens")
            await trio.sleep(1)
            assert all(room.used == 0 for name, room in rooms.items() if name != victim), "given back at the end"
            assert max(node.table.journal_bytes() for node in swarm.nodes.values()) <= rows * ROW


def held(swarm: ToySwarm) -> int:
    """Bytes that the nodes' sessions hold beside their KV."""
    return sum(node.table.journal_bytes() for node in swarm.nodes.values())


@pytest.mark.timeout(300)  # 40 s of processor, more than the usual 120 s where others use it too
async def test_ten_thousand_tokens_are_flat_in_memory(autojump_clock: object, tmp_path: Path) -> None:
    budget = 512 * ROW
    async with toy_swarm(tmp_path) as swarm:
        swarm.model = ToyModel(layers=LAYERS, max_context=2 * LONG)
        for span in [(0, 4), (4, 8), (8, 12)]:
            await swarm.node(str(span), span, config=NodeConfig(journal_bytes=budget))
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=LONG))
            tokens: list[int] = []
            grown: list[int] = []
            while (piece := await stream.receive()) is not None:
                tokens.append(piece.token)
                assert held(swarm) <= 2 * budget, "head and middle have a journal each"
                if len(tokens) == LONG - 1700:  # the journals, 512 rows each, turn over before the first look
                    tracemalloc.start()
                elif len(tokens) in (LONG - 1100, LONG - 100):
                    grown.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
            assert tokens == toy_generate(PROMPT, LONG, layers=LAYERS)
            assert stream.result().failovers == ()
    per_token = (grown[1] - grown[0]) / 1000
    assert per_token < 1024, f"{per_token:.0f} bytes a token"
