"""What users and strangers get wrong is told as a typed error: ids that no model has, a status that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paceline.gateway.source import continuable
from paceline.wire.errors import InvalidRequest, Malformed
from paceline.wire.limits import MAX_VOCAB
from paceline.wire.messages import Message, Status, StatusRequest
from tests.gateway.toying import VOCABULARY, ids, text_swarm
from tests.swarming import ToySwarm, collect, options, toy_swarm


async def ring(swarm: ToySwarm) -> None:
    for span in [(0, 4), (4, 8), (8, 12)]:
        await swarm.node(str(span), span)


@pytest.mark.parametrize("token", [-1, MAX_VOCAB])
async def test_ids_that_cannot_travel_are_refused_here(autojump_clock: object, tmp_path: Path, token: int) -> None:
    async with toy_swarm(tmp_path) as swarm, swarm.client() as client:
        await ring(swarm)
        with pytest.raises(InvalidRequest):
            await client.generate([1, token], options())


async def test_ids_past_a_known_vocabulary_are_refused_here(autojump_clock: object, tmp_path: Path) -> None:
    async with text_swarm(tmp_path) as swarm, swarm.client() as client:
        with pytest.raises(InvalidRequest, match=str(len(VOCABULARY))):
            await client.generate([1, len(VOCABULARY)], options())


async def test_ids_past_an_unknown_vocabulary_are_the_users_mistake(autojump_clock: object, tmp_path: Path) -> None:
    """Without a manifest only the head knows; it does not cost the ring its head."""
    async with toy_swarm(tmp_path) as swarm, swarm.client() as client:
        await ring(swarm)
        stream = await client.generate([1, 50_021], options())
        with pytest.raises(InvalidRequest, match="50021"):
            await collect(stream)
        assert not stream.result().failovers


@pytest.mark.parametrize("said", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'"text"'])
async def test_a_status_that_is_none_is_the_peers_fault(autojump_clock: object, tmp_path: Path, said: bytes) -> None:
    async with toy_swarm(tmp_path) as swarm, swarm.client() as client:
        node = await swarm.node("liar", (0, 12))
        node.links._on_message = liar(node.links.reply, said)
        at = (await client.offers())[0].at
        with pytest.raises(Malformed):
            await client.swarm.status(at)
        (told,) = await client.status()
        assert "cannot be read" in told["error"]


def liar(reply: Callable[..., None], said: bytes) -> Callable[..., None]:
    def on_message(peer: str, message: Message, payload: memoryview) -> None:
        assert isinstance(message, StatusRequest)
        reply(peer, Status(message.request, said))

    return on_message


@pytest.mark.parametrize("cut", range(1, 12))
async def test_a_resumed_answer_reads_on_where_it_was_cut(autojump_clock: object, tmp_path: Path, cut: int) -> None:
    """Characters, spaces and stop strings that lie on the seam are as if there were none."""
    async with text_swarm(tmp_path) as swarm, swarm.client() as client:
        swarm.say("one, two, three")
        asked = options(stop="two, th")
        stream = await client.generate(ids("ab"), asked)
        pieces = [await stream.receive() for _ in range(cut)]
        state = continuable(stream.state(), cut)
        stream.cancel()
        await stream.finished()
        resumed = await client.resume(state, asked)
        while (piece := await resumed.receive()) is not None:
            pieces.append(piece)
        assert "".join(piece.text for piece in pieces if piece) == "one, " == resumed.result().text
        assert resumed.result().finish_reason == "stop"
