"""A user's session on real node processes: text, chat, a killed node, strangers at the ports."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import trio

from paceline.cli.local_swarm import LocalSwarm
from paceline.client import AsyncClient, Client
from paceline.client.timeline import timeline

PROMPT = "The capital of France is"
GARBAGE = (
    os.urandom(4096),
    b"\xff" * 70_000,
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\xfc\n",
)


def test_text_comes_from_three_nodes(swarm: LocalSwarm, home: Path) -> None:
    with Client(swarm.bootstrap, home=home) as client:
        answer = client.generate(PROMPT, max_tokens=12, ignore_eos=True)
        text = "".join(piece.text for piece in answer)
        result = answer.result
        assert "Paris" in text
        assert text == result.text
        assert result.finish_reason == "length"
        assert [rider.start for rider in result.route] == [0, result.route[0].end, result.route[1].end]
        assert result.route[-1].end == 30
        assert result.epochs == 1


def test_chat_stops_by_itself_and_stop_strings_are_not_shown(swarm: LocalSwarm, home: Path) -> None:
    with Client(swarm.bootstrap, home=home) as client:
        messages = [{"role": "user", "content": "Say hello."}]
        whole = client.chat(messages, max_tokens=60)
        text = "".join(piece.text for piece in whole)
        assert whole.result.finish_reason == "stop"
        assert text.strip()
        stop = text.strip().split()[1]
        cut = client.chat(messages, max_tokens=60, stop=stop)
        assert "".join(piece.text for piece in cut) == text[: text.index(stop)]
        assert cut.result.finish_reason == "stop"


def test_a_seed_repeats_a_sampled_answer(swarm: LocalSwarm, home: Path) -> None:
    with Client(swarm.bootstrap, home=home) as client:
        options = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.95, "seed": 7, "logprobs": 2, "ignore_eos": True}
        first, second = ([*client.generate(PROMPT, **options)] for _ in range(2))
        assert [piece.token for piece in first] == [piece.token for piece in second]
        assert all(piece.logprob is not None and len(piece.logprob.top) == 2 for piece in first)


async def test_the_async_client_under_trio(swarm: LocalSwarm, home: Path) -> None:
    with trio.fail_after(60):
        async with AsyncClient(swarm.bootstrap, home=home) as client:
            async with client.generate(PROMPT, max_tokens=4, ignore_eos=True) as answer:
                pieces = [piece async for piece in answer]
            assert len(pieces) == 4


def test_the_async_client_under_asyncio(swarm: LocalSwarm, home: Path) -> None:
    import asyncio

    async def main() -> int:
        async with (
            AsyncClient(swarm.bootstrap, home=home) as client,
            client.generate(PROMPT, max_tokens=4, ignore_eos=True) as answer,
        ):
            return len([piece async for piece in answer])

    assert asyncio.run(main()) == 4


def test_strangers_at_the_ports_harm_nobody(swarm: LocalSwarm, home: Path) -> None:
    with Client(swarm.bootstrap, home=home) as client:
        offers = client.offers()
        before = {node["peer"]: node["transport"] for node in client.status()}
        for offer in offers:
            for address in (*offer.at.control, *offer.at.data):
                _, _, host, _, port = address.split("/")
                for garbage in (
                    os.urandom(4096),
                    b"\xff" * 70_000,
                    b"GET / HTTP/1.1\r\n\r\n",
                    b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\xfc\n",
                ):
                    _shout(host, int(port), garbage)
        answer = client.generate(PROMPT, max_tokens=8, ignore_eos=True)
        assert len([*answer]) == 8
        after = {node["peer"]: node["transport"] for node in client.status()}
        for peer, counts in after.items():
            assert sum(counts.values()) > sum(before[peer].values()), f"{peer} counted nothing"


def _shout(host: str, port: int, data: bytes) -> None:
    with socket.create_connection((host, port), timeout=5) as stranger:
        try:
            stranger.sendall(data)
            stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(5)
            while stranger.recv(4096):
                pass
        except OSError:
            return


def test_a_killed_node_costs_a_pause_and_no_token(swarm: LocalSwarm, home: Path) -> None:
    with Client(swarm.bootstrap, home=home) as client:
        undisturbed = [piece.token for piece in client.generate(PROMPT, max_tokens=40, ignore_eos=True)]
        answer = client.generate(PROMPT, max_tokens=40, ignore_eos=True)
        tokens = []
        for piece in answer:
            tokens.append(piece.token)
            if len(tokens) == 10:
                before = len(answer.result.route)
                middle = answer.result.route[1].peer
                next(node for node in swarm.nodes if node.peer == middle).kill()
        assert tokens == undisturbed
        assert len(answer.result.failovers) == 1
        assert answer.result.failovers[0].lost == (middle,)
        assert answer.result.failovers[0].kept == before - 1, "all others keep what they hold"


def test_the_times_that_stages_tell_are_the_time_that_a_token_takes(swarm: LocalSwarm, home: Path) -> None:
    with Client(swarm.bootstrap, home=home) as client:
        answer = client.generate(PROMPT, max_tokens=32, ignore_eos=True, trace=True)
        found = timeline(list(answer), answer.result)
        assert len(found.stages) == len(answer.result.route) >= 3
        assert abs(found.off) <= 0.10
