"""A record of each answer, and nothing of what was said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        Audit(tmp_path / "no" / "such" / "folder", lambda: 0.0)
