"""A session outlives its client: resumed from its exported state, and owned by one client at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from paceline.client.core import ClientCore
from paceline.client.stream import Stream
from paceline.wire.errors import Fenced, NoRoute, PacelineError
from paceline.wire.offers import Measured
from paceline.wire.session import SessionState
from tests.swarming import ToySwarm, collect, options, toy_swarm

PROMPT = [5, 3, 1, 4, 1, 5, 9, 2, 6]
TOKENS = 300


async def ring(swarm: ToySwarm) -> None:
    for span in [(0, 4), (4, 8), (8, 12)]:
        await swarm.node(str(span), span)


async def test_another_client_goes_on_where_the_first_died(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await ring(swarm)
        async with swarm.client() as first:
            stream = await first.generate(PROMPT, options(max_tokens=TOKENS))
            tokens = [(await stream.receive()).token for _ in range(20)]  # type: ignore[union-attr]
            state = stream.state()
            swarm.network.kill(first.swarm.links.peer)
        async with swarm.client() as second:
            resumed = await second.resume(state, options(max_tokens=TOKENS))
            held = list(state.log[state.prompt_length :])
            assert held[:20] == tokens
            assert held + await collect(resumed) == swarm.expected(PROMPT, TOKENS)
            assert resumed.result().finish_reason == "length"


@pytest.mark.parametrize("fell", [None, 1])
async def test_a_resumed_session_stays_with_the_riders_that_hold_its_kv(
    autojump_clock: object, tmp_path: Path, fell: int | None
) -> None:
    """A quicker ring has come up meanwhile; but it would begin from nothing."""
    async with toy_swarm(tmp_path) as swarm:
        await ring(swarm)
        async with swarm.client() as first:
            stream = await first.generate(PROMPT, options(max_tokens=TOKENS))
            for _ in range(20):
                await stream.receive()
            state, old = stream.state(), stream.result().route
            swarm.network.kill(first.swarm.links.peer)
        await swarm.node("quick", (0, 12), measured=Measured(decode_s=1e-6, prefill_s_per_position=1e-7))
        await swarm.node("spare", (4, 8))
        if fell is not None:
            swarm.kill(swarm.name_of(old[fell].peer))
        async with swarm.client() as second:
            resumed = await second.resume(state, options())
            held = list(state.log[state.prompt_length :])
            assert held + await collect(resumed) == swarm.expected(PROMPT, TOKENS)
            stayed = [rider for at, rider in enumerate(resumed.result().route) if at != fell]
            assert stayed == [rider for at, rider in enumerate(old) if at != fell]


async def test_a_client_that_resumes_its_own_session_fences_itself(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await ring(swarm)
        async with swarm.client() as client:
            stream = await client.generate(PROMPT, options(max_tokens=TOKENS))
            for _ in range(20):
                await stream.receive()
            state = stream.state()
            resumed = await client.resume(state, options())
            assert list(state.log[state.prompt_length :]) + await collect(resumed) == swarm.expected(PROMPT, TOKENS)
            with pytest.raises(Fenced):
                await collect(stream)


async def test_a_resumed_session_stays_in_its_numerics_class(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await ring(swarm)
        async with swarm.client() as first:
            stream = await first.generate(PROMPT, options(max_tokens=TOKENS))
            assert await stream.receive() is not None
            state = stream.state()
            assert state.numerics == stream.result().numerics == "toy-i64"
            with pytest.raises(NoRoute):
                await collect(await first.resume(replace(state, numerics="another"), options()))


async def test_of_two_clients_that_resume_one_wins(autojump_clock: object, tmp_path: Path) -> None:
    async with toy_swarm(tmp_path) as swarm:
        await ring(swarm)
        async with swarm.client() as first, swarm.client() as second, swarm.client() as third:
            stream = await first.generate(PROMPT, options(max_tokens=TOKENS))
            for _ in range(20):
                await stream.receive()
            state = stream.state()
            ends: dict[str, list[int] | PacelineError] = {}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(finish, "first", stream, ends)
                nursery.start_soon(take_over, "second", second, state, ends)
                nursery.start_soon(take_over, "third", third, state, ends)
            winners = {name: end for name, end in ends.items() if isinstance(end, list)}
            assert len(winners) == 1
            assert all(isinstance(end, Fenced) for name, end in ends.items() if name not in winners)
            (tokens,) = winners.values()
            assert list(state.log[state.prompt_length :]) + tokens == swarm.expected(PROMPT, TOKENS)


async def take_over(
    name: str, client: ClientCore, state: SessionState, ends: dict[str, list[int] | PacelineError]
) -> None:
    await finish(name, await client.resume(state, options(max_tokens=TOKENS)), ends)


async def finish(name: str, stream: Stream, ends: dict[str, list[int] | PacelineError]) -> None:
    try:
        ends[name] = await collect(stream)
    except PacelineError as error:
        ends[name] = error
