"""A client remembers who has computed what, for a while, and goes there again while it pays."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.client import prefixes
from paceline.client.prefixes import BLOCK, EXPIRES_S, RINGS, Prefixes
from paceline.routing.prefixes import Knows
from paceline.wire.ids import Span
from paceline.wire.messages import PeerAddress, Stage
from tests.swarming import collect, options, toy_swarm

REVISION = bytes(32)


def ring(*peers: str) -> tuple[Stage, ...]:
    return tuple(Stage(PeerAddress(peer), at, at + 1) for at, peer in enumerate(peers))


def test_the_longest_known_beginning_of_each_ring_is_told() -> None:
    clock = [0.0]
    memory = Prefixes(lambda: clock[0])
    tokens = list(range(10 * BLOCK))
    memory.note(REVISION, tokens[: 3 * BLOCK + 5], ring("a", "b"))
    memory.note(REVISION, tokens[: 2 * BLOCK], ring("c", "b"))
    a, b, c = (Knows(p, Span(at, at + 1), 3 * BLOCK) for p, at in (("a", 0), ("b", 1), ("c", 0)))
    found = memory.rings(REVISION, tokens)
    assert (a, b) in found
    assert {it.positions for riders in found for it in riders if riders[0].peer == c.peer} == {2 * BLOCK}
    assert memory.rings(REVISION, [7, *tokens]) == []
    assert memory.rings(bytes(31) + b"1", tokens) == []
    assert memory.rings(REVISION, tokens[: BLOCK - 1]) == []
    clock[0] = EXPIRES_S + 1.0
    assert memory.rings(REVISION, tokens) == []


def test_memory_is_bounded_and_forgets_what_nobody_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MOST_BLOCKS", 8)
    memory = Prefixes(lambda: 0.0)
    first, second = [1] * 4 * BLOCK, [2] * 4 * BLOCK
    memory.note(REVISION, first, ring("a"))
    memory.note(REVISION, second, ring("b"))
    assert memory.rings(REVISION, first)
    memory.note(REVISION, [3] * 4 * BLOCK, ring("c"))
    assert memory.rings(REVISION, first)
    assert memory.rings(REVISION, second) == []
    for at in range(2 * RINGS):
        memory.note(REVISION, first, ring(f"p{at}"))
    assert len(memory.rings(REVISION, first)) == RINGS


async def test_a_prompt_that_was_computed_goes_where_it_was(autojump_clock: object, tmp_path: Path) -> None:
    """1,000 tokens take a ring of two 0.13 s. Riders slower by 2 ms a token still end first, by 50 ms they do not."""
    prompt = [(7 * k) % 1000 for k in range(1000)]
    async with toy_swarm(tmp_path) as swarm:
        for name, span in (("head", (0, 6)), ("tail", (6, 12)), ("head-2", (0, 6)), ("tail-2", (6, 12))):
            await swarm.node(name, span)
        async with swarm.client() as client:

            async def riders(tokens: list[int]) -> list[str]:
                stream = await client.generate(tokens, options())
                assert await collect(stream) == swarm.expected(tokens, 16)
                return [rider.peer for rider in stream.result().route]

            first = await riders(prompt)
            client.swarm.stragglers.note(dict.fromkeys(first, 0.002))  # type: ignore[arg-type]
            assert not set(await riders([5, *prompt])) & set(first)
            assert await riders([*prompt, 5, 3]) == first
            client.swarm.stragglers.note(dict.fromkeys(first, 0.05))  # type: ignore[arg-type]
            assert not set(await riders([*prompt, 5, 3])) & set(first)
