"""Swarms as volunteers make them: spans that overlap anyhow, uneven speeds, and nodes that fall while a session rides.

Everything is real but the wires and the model: chooser, owner, nodes, links. While the layers stay covered, the text is
the one of a single process; whatever the seed.
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from paceline.wire.offers import Measured
from tests.swarming import LAYERS, ToySwarm, collect, options, toy_swarm

TOKENS = 60


def covered(spans: list[tuple[int, int]]) -> bool:
    """Whether the layers can be ridden in order with each of `spans` used once."""
    at = 0
    while at < LAYERS:
        at, before = max((end for start, end in spans if start <= at), default=0), at
        if at <= before:
            return False
    return True


def drawn_swarm(rng: random.Random) -> list[tuple[tuple[int, int], Measured]]:
    """Quick nodes with a tile each, of which some are missing, and slow ones that hold nearly everything: so slow ones
    ride where nobody else does, and have to do more when the quick ones fall.
    """
    while True:
        cuts = [0, *sorted(rng.sample(range(1, LAYERS), rng.randint(2, 4))), LAYERS]
        nodes = [(tile, drawn_speed(rng, tile, 0.0001)) for tile in pairwise(cuts) if rng.random() < 0.8]
        for _ in range(rng.randint(1, 3)):
            wide = (rng.choice([0, 0, 1, 2]), LAYERS - rng.choice([0, 0, 1, 2]))
            nodes.append((wide, drawn_speed(rng, wide, 0.02)))
        if covered([span for span, _ in nodes]):
            return nodes


def drawn_speed(rng: random.Random, span: tuple[int, int], quick_s: float) -> Measured:
    """What it takes for a token: `quick_s` a layer, or up to three times as long."""
    decode_s = quick_s * rng.uniform(1.0, 3.0) * (span[1] - span[0])
    return Measured(decode_s=decode_s, prefill_s_per_position=decode_s / 10)


def fell(swarm: ToySwarm, alive: dict[str, tuple[int, int]], riders: list[str], rng: random.Random) -> bool:
    """One rider falls whom the others can do without; False where there is none."""
    can_go = [n for n in riders if n in alive and covered([span for other, span in alive.items() if other != n])]
    if not can_go:
        return False
    name = rng.choice(can_go)
    del alive[name]
    swarm.kill(name) if rng.random() < 0.7 else swarm.freeze(name)
    return True


@pytest.mark.parametrize("seed", range(24))
async def test_text_goes_on_while_the_layers_are_covered(autojump_clock: object, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(1000) for _ in range(rng.randint(1, 40))]
    async with toy_swarm(tmp_path) as swarm:
        alive = {}
        for number, (span, measured) in enumerate(drawn_swarm(rng)):
            name = f"n{number}"
            await swarm.node(name, span, measured=measured, shadow=rng.random() < 0.3)
            alive[name] = span
        async with swarm.client() as client:
            stream = await client.generate(prompt, options(max_tokens=TOKENS))
            tokens: list[int] = []
            losses = 0
            while len(tokens) < TOKENS - 8:
                for _ in range(rng.randint(1, 12)):
                    if len(tokens) < TOKENS and (piece := await stream.receive()) is not None:
                        tokens.append(piece.token)
                riders = [swarm.name_of(rider.peer) for rider in stream.result().route]
                if len(tokens) < TOKENS - 8 and not fell(swarm, alive, riders, rng):
                    break
                losses += 1
            tokens += await collect(stream)
            assert tokens == swarm.expected(prompt, TOKENS)
            assert stream.result().finish_reason == "length"
            assert trio.current_time() < 60.0 * (losses + 1)
