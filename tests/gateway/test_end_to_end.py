"""`paceline gateway` as a process, three node processes, the real model, and the official client over real sockets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from paceline.cli.local_swarm import LocalSwarm, local_swarm
from paceline.client import Client
from paceline.engine import default_model
from paceline.store.store import Store

HOME = Path(__file__).parents[2] / "build" / "test-home"
ASK = [{"role": "user", "content": "Name three fruits."}]


@dataclass
class Running:
    """A gateway process and what it serves."""

    swarm: LocalSwarm
    process: subprocess.Popen[str]
    url: str

    @property
    def api(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The whole model on one node, and its halves on two."""
    default_model.ensure(Store(HOME / "store"))
    folder = tmp_path_factory.mktemp("swarm")
    with local_swarm(HOME, folder, default_model.NAME, ["all", "1/2", "2/2"]) as swarm:
        command = [sys.executable, "-m", "paceline.cli", "gateway", "--port", "0", "--swarm", swarm.bootstrap[0]]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PACELINE_HOME": str(HOME)}
        )
        try:
            yield Running(swarm, process, told_url(process))
        finally:
            process.kill()
            process.wait()


def told_url(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://[\d.:]+", line):
            return found[0]
    raise AssertionError("no URL was told")


def sessions(client: Client) -> int:
    return sum(int(node.get("sessions", 0)) for node in client.status())


def test_models_chat_and_completions(running: Running) -> None:
    api = running.api
    assert [model.id for model in api.models.list()] == [default_model.NAME]
    whole = api.chat.completions.create(model=default_model.NAME, messages=ASK, temperature=0, max_tokens=12)  # type: ignore[arg-type]
    stream = api.chat.completions.create(
        model=default_model.NAME,
        messages=ASK,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=12,
        stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    france = api.completions.create(model=default_model.NAME, prompt="The capital of France is", temperature=0)
    assert "Paris" in france.choices[0].text
    reply = api.responses.create(model=default_model.NAME, input="Say hello.", temperature=0, max_output_tokens=4)
    assert reply.output_text


def test_a_reader_that_closes_its_connection_frees_the_session(running: Running) -> None:
    with Client(running.swarm.bootstrap, home=HOME) as client:
        stream = running.api.chat.completions.create(
            model=default_model.NAME,
            messages=ASK,  # type: ignore[arg-type]
            max_tokens=2000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        assert sessions(client) > 0
        stream.close()
        while sessions(client):
            pass


def test_a_killed_node_costs_no_token_and_ctrl_c_leaves_nothing(running: Running) -> None:
    def answer(kill: bool) -> tuple[str, int]:
        text, rides = "", []
        stream = running.api.chat.completions.create(
            model=default_model.NAME,
            messages=ASK,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=24,
            stream=True,
            extra_body={"paceline_events": True, "ignore_eos": True},
        )
        for index, chunk in enumerate(stream):
            text += chunk.choices[0].delta.content or ""
            rides += [ride] if (ride := (chunk.model_extra or {}).get("paceline")) else []
            if kill and index == 6:
                head = rides[0]["route"][0]["peer"]
                next(node for node in running.swarm.nodes if node.peer == head).kill()
        return text, len(rides[-1]["failovers"])

    undisturbed, none = answer(kill=False)
    assert none == 0
    assert answer(kill=True) == (undisturbed, 1)
    running.process.send_signal(signal.SIGINT)
    _, said = running.process.communicate(timeout=30)
    assert running.process.returncode in (0, 130)
    assert "Traceback" not in said
