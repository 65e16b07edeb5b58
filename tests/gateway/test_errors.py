"""Every error has an honest status, and no answer ends well that did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paceline.consistency.owner import OwnerLimits
from paceline.gateway.errors import body_of, headers_of, status_of
from paceline.wire import errors
from tests.gateway.asking import asking
from tests.gateway.toying import PLAIN_TEMPLATE, text_swarm

ASK: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


def test_every_error_of_the_tree_has_a_status() -> None:
    statuses = {code: status_of(kind("why")) for code, kind in errors.ERRORS.items()}
    assert statuses["invalid_request"] == statuses["context_overflow"] == 400
    assert statuses["model_not_found"] == 404
    assert statuses["overloaded"] == statuses["draining"] == 429
    assert statuses["peer_unavailable"] == statuses["no_route"] == statuses["session_lost"] == 503
    assert statuses["corrupt_block"] == 502
    assert statuses["internal_error"] == 500
    assert headers_of(errors.Overloaded("full"))["retry-after"] == "1"
    assert body_of(errors.ContextOverflow("long", cure="cut")).error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "changes", "param"),
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"max_tokens": 0}, "max_tokens"),
        (CHAT, {"temperature": "hot"}, "temperature"),
        (CHAT, {"top_p": 0}, "top_p"),
        (CHAT, {"n": 17}, "n"),
        (CHAT, {"stop": [""]}, "stop[0]"),
        (CHAT, {"unheard_of": 1}, "unheard_of"),
        (CHAT, {"logit_bias": {"5": 1}}, "logit_bias"),
        (CHAT, {"paceline_objective": "fame"}, "paceline_objective"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT, {"response_format": {"type": "json_object"}, "min_tokens": 3}, "min_tokens"),
        (CHAT, {"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tool_choice": "sometimes", "tools": [TOOL]}, "tool_choice"),
        (CHAT, {"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [TOOL]}, "tool_choice"),
        (
            CHAT,
            {"tool_choice": "required", "tools": [TOOL], "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (TEXT, {"prompt": ["a", 1]}, "prompt"),
        (TEXT, {"prompt": "a", "suffix": "b"}, "suffix"),
        (TEXT, {"prompt": "a", "best_of": 3}, "best_of"),
        (TEXT, {"prompt": ["a"] * 5, "n": 16}, "n"),
        (RESPONSES, {"input": "a", "tools": [TOOL]}, "tools"),
        (RESPONSES, {"input": "a", "text": {"format": {"type": "json_schema"}}}, "text"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    tmp_path: Path, autojump_clock: object, path: str, changes: dict[str, Any], param: str
) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        base = ASK if path == CHAT else {"model": "toy"}
        refused = await ask.post(path, base | changes)
        assert (refused.status, refused.json["error"]["param"]) == (400, param)
        assert refused.json["error"]["type"] == "invalid_request_error"


async def test_a_template_without_tools_is_told_of_them_in_words(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path, template=PLAIN_TEMPLATE) as swarm, asking(swarm) as ask:
        plain = (await ask.post(CHAT, ASK)).json["usage"]["prompt_tokens"]
        swarm.say('{"name": "f", "arguments": {}}')
        answer = await ask.post(CHAT, ASK | {"tools": [TOOL], "max_tokens": 60})
        assert answer.json["usage"]["prompt_tokens"] > plain + 100
        assert answer.json["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"


async def test_unknown_models_paths_and_methods(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        missing = await ask.post(CHAT, ASK | {"model": "other"})
        assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")
        assert "toy" in missing.json["error"]["message"]
        assert (await ask.get("/v1/models/other")).status == 404
        assert (await ask.get("/v1/nothing")).json["error"]["code"] == "not_found"
        wrong = await ask.get(CHAT)
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")


async def test_too_long_a_prompt_is_the_callers_fault(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        long = await ask.post(TEXT, {"model": "toy", "prompt": "a" * 600})
        assert (long.status, long.json["error"]["code"]) == (400, "context_length_exceeded")
        unknown = await ask.post(TEXT, {"model": "toy", "prompt": [7, 100_000]})
        assert (unknown.status, unknown.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_swarm_with_a_hole_or_without_nodes_is_unavailable(
    tmp_path: Path, autojump_clock: object, streamed: bool
) -> None:
    async with text_swarm(tmp_path, start=False) as swarm, asking(swarm) as ask:
        empty = await ask.post(CHAT, ASK | {"stream": streamed})
        assert (empty.status, empty.json["error"]["code"]) == (503, "peer_unavailable")
        await swarm.node("first", (0, 4))
        holed = await ask.post(CHAT, ASK | {"stream": streamed})
        assert (holed.status, holed.json["error"]["code"]) == (503, "no_route")
        assert "4–11" in holed.json["error"]["message"]
        assert int(holed.headers["retry-after"]) > 0
        models = await ask.get("/v1/models")
        assert models.json["data"][0]["paceline"]["ready"] is False


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_session_lost_in_the_middle_is_an_error_event_and_no_finish(
    tmp_path: Path, autojump_clock: object, path: str
) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm, limits=OwnerLimits(give_up_s=5.0)) as ask:
        body = ASK | {"max_tokens": 300} if path == CHAT else {"model": "toy", "input": "hi"}
        answer = ask.begin("POST", path, body | {"stream": True, "ignore_eos": True})
        await answer.until(8)
        swarm.kill("node-2")
        await answer.over.wait()
        assert answer.status == 200
        assert b'"finish_reason":"' not in answer.body
        assert b"[DONE]" not in answer.body
        last = answer.chunks[-1]
        told = last["error"] if path == CHAT else last["response"]["error"]
        assert told["code"] == "session_lost"
        metrics = (await ask.get("/metrics")).body.decode()
        assert 'paceline_gateway_errors_total{code="session_lost"} 1.0' in metrics


async def test_a_session_lost_before_its_end_is_an_error_for_those_who_wait(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm, limits=OwnerLimits(give_up_s=5.0)) as ask:
        streamed = ask.begin("POST", CHAT, ASK | {"max_tokens": 300, "stream": True})
        whole = ask.begin("POST", CHAT, ASK | {"max_tokens": 300, "n": 2})
        await streamed.until(3)
        swarm.kill("node-3")
        await whole.over.wait()
        assert (whole.status, whole.json["error"]["code"]) == (503, "session_lost")


@pytest.mark.parametrize(
    ("path", "changes"),
    [(CHAT, {}), (CHAT, {"tools": [TOOL]}), (TEXT, {"prompt": [5, 6]}), (TEXT, {"prompt": [5, 6], "echo": True})],
)
async def test_the_level_is_held_to_by_every_question_about_the_model(
    tmp_path: Path, autojump_clock: object, path: str, changes: dict[str, Any]
) -> None:
    asked = (ASK if path == CHAT else {"model": "toy", "max_tokens": 4}) | changes
    async with text_swarm(tmp_path) as swarm, asking(swarm) as ask:
        told = await ask.post(path, asked | {"paceline_consistency": f"pinned({'00' * 32})"})
        assert (told.status, told.json["error"]["code"]) == (503, "level_unmet")
