"""Whole rings in one process: nodes, client, links and protocol as in life, on the memory transport with toy shards."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from paceline.consistency.owner import OwnerLimits
from paceline.wire.errors import ContextOverflow, NoRoute, PacelineError
from paceline.wire.sampling import SamplingParams
from tests.swarming import MEASURED, collect, options, toy_swarm

PROMPT = [5, 3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("spans", [[(0, 12)], [(0, 4), (4, 12)], [(0, 4), (4, 8), (8, 12)]])
async def test_a_ring_generates_what_one_process_would(
    autojump_clock: object, tmp_path: Path, spans: list[tuple[int, int]]
) -> None:
    async with toy_swarm(tmp_path) as swarm:
        for number, span in enumerate(spans):
            await swarm.node(f"n{number}", span)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options())
            assert await collect(stream) == swarm.expected(PROMPT, 16)
            result = stream.result()
            assert result.finish_reason == "length"
            assert [(rider.start, rider.end) for rider in result.route] == spans
            assert result.failovers == ()
            await trio.sleep(1)
            assert [len(node.table) for node in swarm.nodes.values()] == [0] * len(spans)


async def test_a_prompt_longer_than_a_chunk_is_the_same(autojump_clock: object, tmp_path: Path) -> None:
    prompt = [(7 * k) % 1000 for k in range(100)]
    async with toy_swarm(tmp_path) as swarm:
        for span in [(0, 5), (5, 9), (9, 12)]:
            await swarm.node(str(span), span)
        async with swarm.client() as client:
            stream = await client.generate(prompt, options(chunk=16))
            assert await collect(stream) == swarm.expected(prompt, 16)


async def test_sampling_with_penalties_needs_the_history_at_the_tail(autojump_clock: object, tmp_path: Path) -> None:
    params = SamplingParams(seed=11, temperature=0.8, top_k=40, repetition_penalty=1.2, presence_penalty=0.5)
    async with toy_swarm(tmp_path) as swarm:
        for span in [(0, 6), (6, 12)]:
            await swarm.node(str(span), span)
        async with swarm.client() as client:
            stream = await client.generate(
                PROMPT, options(seed=11, temperature=0.8, top_k=40, repetition_penalty=1.2, presence_penalty=0.5)
            )
            assert await collect(stream) == swarm.expected(PROMPT, 16, params)


async def test_many_sessions_share_the_ring(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        for span in [(0, 4), (4, 8), (8, 12)]:
            await swarm.node(str(span), span)
        async with swarm.client() as client:
            streams = [await client.generate([n, 2, 3], options()) for n in range(8)]
            for n, stream in enumerate(streams):
                assert await collect(stream) == swarm.expected([n, 2, 3], 16)


async def test_cancel_frees_the_session_everywhere(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        for span in [(0, 6), (6, 12)]:
            await swarm.node(str(span), span)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=2000))
            assert await stream.receive() is not None
            stream.cancel()
            await stream.finished()
            assert stream.result().finish_reason == "cancelled"
            await trio.sleep(0.5)
            assert all(len(node.table) == 0 for node in swarm.nodes.values())


@pytest.mark.parametrize("victim", ["head", "middle", "tail"])
@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_lost_stage_loses_no_token(autojump_clock: object, tmp_path: Path, victim: str, how: str) -> None:
    async with toy_swarm(tmp_path) as swarm:
        for name, span in {"head": (0, 4), "middle": (4, 8), "tail": (8, 12)}.items():
            await swarm.node(name, span)
            await swarm.node(f"{name}-2", span)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=40))
            tokens = [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
            span = {"head": 0, "middle": 4, "tail": 8}[victim]
            rider = next(rider for rider in stream.result().route if rider.start == span)
            getattr(swarm, how)(swarm.name_of(rider.peer))
            tokens += await collect(stream)
            assert tokens == swarm.expected(PROMPT, 40)
            result = stream.result()
            assert result.finish_reason == "length"
            assert len(result.failovers) >= 1
            assert rider.peer not in [r.peer for r in result.route]


async def test_a_leaving_node_hands_its_sessions_over(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("head", (0, 6))
        await swarm.node("tail", (6, 12))
        await swarm.node("tail-2", (6, 12))
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=20_000 // 8))
            tokens = [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
            leaving = swarm.name_of(stream.result().route[-1].peer)
            swarm.nodes[leaving].leave()
            tokens += await collect(stream)
            assert tokens == swarm.expected(PROMPT, 2500)


async def test_missing_layers_are_named(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("head", (0, 4))
        async with swarm.client() as client:
            with pytest.raises(NoRoute) as caught:
                await client.generate(PROMPT, options(timeout_s=0.5))
            assert caught.value.missing == tuple(range(4, 12))
            assert caught.value.cure


async def test_a_prompt_beyond_the_context_is_refused(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("all", (0, 12))
        async with swarm.client() as client:
            with pytest.raises(ContextOverflow):
                await client.generate([1] * 5000, options())


async def test_without_any_replica_the_session_ends_with_a_typed_error(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await swarm.node("head", (0, 6))
        await swarm.node("tail", (6, 12))
        async with swarm.client(OwnerLimits(give_up_s=5.0)) as client:
            stream = await client.generate(PROMPT, options(max_tokens=2000))
            assert await stream.receive() is not None
            swarm.kill("tail")
            with pytest.raises(PacelineError) as caught:
                await collect(stream)
            assert caught.value.code == "session_lost"


async def test_a_node_offers_the_uplink_that_receivers_have_measured(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with toy_swarm(tmp_path) as swarm:
        node = await swarm.node("a", (0, 12))
        assert node.offering.offer().services[0].measured.uplink_bytes_per_s == 0.0
        monkeypatch.setattr(node.links, "uplink_bytes_per_s", lambda: 7e5)
        offer = node.offering.offer()
        assert offer.services[0].measured == msgspec.structs.replace(MEASURED, uplink_bytes_per_s=7e5)
        assert node.status()["uplink_bytes_per_s"] == 7e5
