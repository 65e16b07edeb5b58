"""A record of each answer, and nothing of what was said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import trio

from paceline.gateway.audit import Audit
from paceline.gateway.config import GatewayConfig
from paceline.wire.errors import InvalidRequest
from tests.gateway.asking import asking
from tests.gateway.toying import text_swarm

ASK = {"model": "toy", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 30}


async def test_every_answer_leaves_a_line_without_its_text(tmp_path: Path, autojump_clock: object) -> None:
    path = tmp_path / "audit.jsonl"
    async with text_swarm(tmp_path) as swarm, asking(swarm, GatewayConfig(audit=path)) as ask:
        swarm.say("the answer")
        whole = await ask.post("/v1/chat/completions", ASK)
        left = ask.begin("POST", "/v1/chat/completions", ASK | {"stream": True, "ignore_eos": True, "max_tokens": 400})
        await left.until(3)
        left.leave()
        await left.over.wait()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["trace"] == whole.headers["x-paceline-trace"]
    assert (first["ended"], first["answer_tokens"], first["endpoint"]) == ("stop", 11, "chatcmpl")
    assert len(first["route"]) == 3
    assert len(first["revision"]) == 64
    assert second["ended"] == "reader left"
    assert "secret" not in path.read_text()
    assert "the answer" not in path.read_text()


async def test_logs_of_gateway_and_nodes_are_joined_by_the_trace(
    tmp_path: Path, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "paceline")
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        swarm.say("the answer")
        whole = await ask.post("/v1/chat/completions", ASK)
        assert (await ask.post("/v1/chat/completions", ASK | {"model": "other"})).status == 404
        while any(len(node.table) for node in swarm.nodes.values()):
            await trio.sleep(0.01)
    told = [(each.message, each.args) for each in caplog.records if each.name.startswith("paceline.")]
    trace = whole.headers["x-paceline-trace"]
    mine = [event for event, facts in told if isinstance(facts, dict) and facts.get("trace") == trace]
    assert sorted(mine) == ["answer", *["session opened"] * 3, *["session over"] * 3]
    assert ("refused", {"path": "/v1/chat/completions", "code": "model_not_found"}) in told
    assert "secret" not in str(told)
    assert "the answer" not in str(told)


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        Audit(tmp_path / "no" / "such" / "folder", lambda: 0.0)
