"""Streams: whole however they are cut, freed when nobody reads, repaired in the middle, resumed after a break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from paceline.gateway.config import ApiKey, GatewayConfig
from tests.gateway.asking import Answer, Asker, asking
from tests.gateway.toying import TextSwarm, text_swarm

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "toy",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 60,
    "temperature": 0.7,
    "seed": 5,
    "ignore_eos": True,
}
STREAM = ASK | {"stream": True}


async def resumed(ask: Asker, answer: Answer, after: int) -> Answer:
    path = f"/paceline/streams/{answer.headers['x-paceline-stream']}"
    return await ask.get(path, {"last-event-id": str(after)})


async def test_a_stream_says_what_the_whole_answer_says(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        whole = (await ask.post(CHAT, ASK)).json
        streamed = await ask.post(CHAT, STREAM | {"stream_options": {"include_usage": True}})
        assert streamed.text == whole["choices"][0]["message"]["content"]
        assert streamed.chunks[-2]["choices"][0]["finish_reason"] == "length"
        assert streamed.chunks[-1]["usage"] == whole["usage"]
        assert whole["usage"]["completion_tokens"] == 60
        marks = [int(event["id"]) for event in streamed.events if "id" in event]
        assert marks == sorted(set(marks))  # tokens without text, such as special ones, send no event
        assert set(marks) <= set(range(60))
        assert streamed.events[-1] == {"data": "[DONE]"}


async def test_several_choices_are_streamed_beside_each_other(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        whole = (await ask.post(CHAT, ASK | {"n": 3})).json
        texts = [choice["message"]["content"] for choice in whole["choices"]]
        assert len(set(texts)) == 3
        streamed = await ask.post(CHAT, STREAM | {"n": 3, "stream_options": {"include_usage": True}})
        choices = [choice for chunk in streamed.chunks for choice in chunk["choices"]]
        parts = [[c["delta"].get("content", "") for c in choices if c["index"] == index] for index in range(3)]
        assert ["".join(each) for each in parts] == texts
        assert sorted(c["index"] for c in choices if c["finish_reason"] == "length") == [0, 1, 2]
        assert streamed.chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_reader_that_leaves_frees_the_session_within_a_second(
    tmp_path: Path, autojump_clock: object, streamed: bool
) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        answer = ask.begin("POST", CHAT, ASK | {"stream": streamed, "max_tokens": 400})
        await until_riding(swarm)
        answer.leave()
        with trio.fail_after(1.0):
            await answer.over.wait()
            while any(len(node.table) for node in swarm.nodes.values()):
                await trio.sleep(0.01)
        metrics = (await ask.get("/metrics")).body.decode()
        assert "paceline_gateway_disconnects_total 1.0" in metrics
        assert "paceline_gateway_active 0.0" in metrics
        assert (await ask.get("/healthz")).json == {"status": "ok", "active": 0}


async def until_riding(swarm: TextSwarm) -> None:
    while not all(len(node.table) for node in swarm.nodes.values()):
        await trio.sleep(0.001)


async def test_a_lost_node_is_told_and_costs_no_token(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        wanted = (await ask.post(CHAT, ASK)).json["choices"][0]["message"]["content"]
        await swarm.node("spare", (4, 8))
        answer = ask.begin("POST", CHAT, STREAM | {"paceline_events": True})
        await answer.until(10)
        told = [chunk["paceline"] for chunk in answer.chunks if "paceline" in chunk]
        middle = swarm.name_of(told[0]["route"][1]["peer"])
        swarm.kill(middle)
        await answer.over.wait()
        assert answer.text == wanted
        rides = [chunk["paceline"] for chunk in answer.chunks if "paceline" in chunk]
        assert rides[0]["failovers"] == []
        (failover,) = rides[-1]["failovers"]
        assert 0 < failover["index"] < 60
        assert [swarm.name_of(peer) for peer in failover["lost"]] == [middle]
        assert [(stage["start"], stage["end"]) for stage in rides[-1]["route"]] == [(0, 4), (4, 8), (8, 12)]
        assert "paceline_gateway_failovers_total" in (await ask.get("/metrics")).body.decode()


@pytest.mark.parametrize("stop", [None, "zz", "m"])
async def test_a_cut_off_stream_goes_on_as_if_it_had_not_been(
    tmp_path: Path, autojump_clock: object, stop: str | None
) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        body = STREAM | {"stop": stop} if stop else STREAM
        complete = await ask.post(CHAT, body)
        for cut in (1, 7, 23):
            answer = ask.begin("POST", CHAT, body)
            await answer.until(cut)
            answer.leave()
            await answer.over.wait()
            last = int(answer.events[-1].get("id", 60))
            rest = await resumed(ask, answer, last)
            assert rest.status == 200
            both = answer.events + rest.events
            ids = [event["id"] for event in both if "id" in event]
            assert ids == [event["id"] for event in complete.events if "id" in event]
            assert answer.text + rest.text == complete.text
            assert rest.chunks[-1]["choices"][0]["finish_reason"] == complete.chunks[-1]["choices"][0]["finish_reason"]


async def test_a_reader_may_come_back_often_and_take_over_from_itself(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        complete = await ask.post(CHAT, STREAM)
        first = ask.begin("POST", CHAT, STREAM)
        await first.until(5)
        again = await resumed(ask, first, -1)  # the first connection is still open
        assert again.text == complete.text
        await first.over.wait()
        assert b'"finish_reason":"' not in first.body
        later = [event["id"] for event in complete.events if int(event.get("id", 0)) > 30]
        rest = await resumed(ask, first, 30)
        assert [event["id"] for event in rest.events if "id" in event] == later
        assert complete.text.endswith(rest.text)
        assert (await resumed(ask, first, 59)).text == ""


async def test_streams_are_their_owners_and_are_forgotten(tmp_path: Path, autojump_clock: object) -> None:
    keys = (ApiKey(name="a", key="ka"), ApiKey(name="b", key="kb"))
    config = GatewayConfig(keys=keys, resume_s=100.0)
    async with text_swarm(tmp_path) as swarm, asking(swarm, config) as ask:
        answer = await ask.post(CHAT, STREAM, {"authorization": "Bearer ka"})
        path = f"/paceline/streams/{answer.headers['x-paceline-stream']}"
        assert (await ask.get(path, {"authorization": "Bearer kb"})).status == 404
        assert (await ask.get(path, {"authorization": "Bearer ka", "last-event-id": "x"})).status == 400
        assert (await ask.get(f"{path}?after=999", {"authorization": "Bearer ka"})).status == 400
        assert (await ask.get(f"{path}?after=3", {"authorization": "Bearer ka"})).status == 200
        await trio.sleep(101.0)
        assert (await ask.get(path, {"authorization": "Bearer ka"})).status == 404


async def test_a_tool_call_is_streamed_as_one(tmp_path: Path, autojump_clock: object) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        swarm.say('Wait.<tool_call>{"name": "now", "arguments": {"zone": "CET"}}</tool_call>')
        answer = await ask.post(CHAT, ASK | {"stream": True, "tools": [tool], "max_tokens": 200, "ignore_eos": False})
        calls = [c for chunk in answer.chunks for c in chunk["choices"][0]["delta"].get("tool_calls", ())]
        assert [call["function"] for call in calls] == [{"name": "now", "arguments": '{"zone": "CET"}'}]
        assert answer.text == "Wait."
        assert answer.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("tier", "priority"), [("priority", 1), ("default", 0), ("flex", -1)])
async def test_every_node_knows_the_tier(tmp_path: Path, autojump_clock: object, tier: str, priority: int) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        answer = ask.begin("POST", CHAT, STREAM | {"service_tier": tier})
        await until_riding(swarm)
        configs = [riding.machine.config for node in swarm.nodes.values() for riding in node.table._riding.values()]
        assert [config.priority for config in configs] == [priority] * 3
        await answer.over.wait()


async def test_a_hedged_answer_says_the_same_and_tells_its_cost(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        wanted = (await ask.post(CHAT, ASK)).json["choices"][0]["message"]["content"]
        for span in [(0, 4), (4, 8), (8, 12)]:
            await swarm.node(f"other {span}", span)
        answer = await ask.post(CHAT, STREAM | {"paceline_events": True, "paceline_hedge": True})
        assert answer.text == wanted
        ride = next(chunk["paceline"] for chunk in answer.chunks if "paceline" in chunk)
        assert ride["hedge"]["rings"] == 2
        assert ride["hedge"]["won"] in (1, 2)
        assert ride["hedge"]["lost_with"] == ""
        plain = await ask.post(CHAT, STREAM | {"paceline_events": True})
        assert next(chunk["paceline"] for chunk in plain.chunks if "paceline" in chunk)["hedge"] is None
        await trio.sleep(1.0)
        assert not any(len(node.table) for node in swarm.nodes.values())
