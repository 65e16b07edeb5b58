"""The official client against a gateway process over three node processes: every feature that the gateway claims."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans
from pydantic import BaseModel

from paceline.cli.local_swarm import LocalSwarm, local_swarm
from paceline.client import Client
from paceline.engine import default_model

MODEL = default_model.NAME
HI: list[Any] = [{"role": "user", "content": "Name three fruits."}]
FRUIT = {
    "type": "object",
    "properties": {
        "fruits": {"type": "array", "items": {"enum": ["apple", "pear", "plum"]}, "minItems": 3, "maxItems": 3},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["fruits", "count"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": FRUIT, "strict": True}}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Ghent", "Oslo"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
KEYS = """
[[keys]]
name = "all"
key = "sk-all"
[[keys]]
name = "few"
key = "sk-few"
requests_per_minute = 2
[[keys]]
name = "short"
key = "sk-short"
answer_tokens = 4
"""


@dataclass
class Served:
    """A gateway process over a swarm."""

    swarm: LocalSwarm
    url: str

    def api(self, key: str = "sk-all") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def served(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three thirds of the model, and a gateway with keys."""
    folder = tmp_path_factory.mktemp("openai")
    (folder / "keys.toml").write_text(KEYS)
    with local_swarm(home, folder, MODEL, ["1/3", "2/3", "3/3"]) as swarm:
        command = [sys.executable, "-m", "paceline.cli", "gateway", "--port", "0", "--swarm", swarm.bootstrap[0]]
        where = {**os.environ, "PACELINE_HOME": str(home)}
        keys = ["--keys", str(folder / "keys.toml")]
        process = subprocess.Popen([*command, *keys], stderr=subprocess.PIPE, text=True, env=where)
        try:
            assert process.stderr is not None
            url = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
            yield Served(swarm, url)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.fixture
def api(served: Served) -> openai.OpenAI:
    return served.api()


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_models(api: openai.OpenAI) -> None:
    assert [model.id for model in api.models.list()] == [MODEL]
    assert api.models.retrieve(MODEL).owned_by == "paceline"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("another")


def test_chat_whole_and_streamed_with_usage(api: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "messages": HI, "temperature": 0, "extra_body": {"ignore_eos": True}}
    whole = api.chat.completions.create(**options, max_tokens=16)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    usage: Any = {"include_usage": True}
    stream = api.chat.completions.create(**options, max_completion_tokens=16, stream=True, stream_options=usage)
    chunks = list(stream)
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    natural: Any = {"model": MODEL, "messages": HI, "temperature": 0, "max_tokens": 100}
    with api.chat.completions.stream(**natural) as events:
        for _ in events:
            pass
        final = events.get_final_completion().choices[0]
    assert (final.finish_reason, bool(final.message.content)) == ("stop", True)


def test_stop_seed_logprobs_and_n(api: openai.OpenAI) -> None:
    create = api.chat.completions.create
    text = create(model=MODEL, messages=HI, temperature=0, max_tokens=16).choices[0].message.content or ""
    stop = text.split()[2]
    cut = create(model=MODEL, messages=HI, temperature=0, max_tokens=16, stop=[stop, "never said"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")
    same = [create(model=MODEL, messages=HI, seed=11, max_tokens=8) for _ in range(2)]
    assert same[0].choices[0].message.content == same[1].choices[0].message.content
    assert same[0].system_fingerprint == same[1].system_fingerprint
    many = create(model=MODEL, messages=HI, n=2, seed=11, max_tokens=8, logprobs=True, top_logprobs=3)
    assert many.choices[0].message.content == same[0].choices[0].message.content
    assert many.choices[1].message.content != many.choices[0].message.content
    logprobs = many.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(each.top_logprobs) for each in logprobs.content] == [3] * 8


def test_text_completions(api: openai.OpenAI) -> None:
    create = api.completions.create
    paris = create(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=4, logprobs=2, n=1)
    assert "Paris" in paris.choices[0].text
    assert paris.choices[0].logprobs is not None
    two = create(model=MODEL, prompt=["One, two,", "The sun is"], temperature=0, max_tokens=3, echo=True)
    assert [
        choice.text.startswith(start) for choice, start in zip(two.choices, ("One, two,", "The sun is"), strict=True)
    ]
    ids = create(model=MODEL, prompt=[1, 2, 3], temperature=0, max_tokens=3, stream=True)
    assert len([chunk for chunk in ids if chunk.choices]) >= 1
    with pytest.raises(openai.BadRequestError) as refused:
        create(model=MODEL, prompt=[49_152], max_tokens=3)
    assert refused.value.param == "prompt"


def test_responses(api: openai.OpenAI) -> None:
    whole = api.responses.create(model=MODEL, input="Say hello.", temperature=0, max_output_tokens=6)
    assert whole.status == "incomplete"
    events = list(
        api.responses.create(model=MODEL, input="Say hello.", temperature=0, max_output_tokens=6, stream=True)
    )
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    form: Any = {"format": {"type": "json_schema", "name": "fruit", "schema": FRUIT}}
    formed = api.responses.create(model=MODEL, input="Fruit!", temperature=0, max_output_tokens=80, text=form)
    assert len(json.loads(formed.output_text)["fruits"]) == 3


class Fruit(BaseModel):
    """What `parse` asks for."""

    fruits: list[Literal["apple", "pear", "plum"]]
    ripe: bool


def test_an_answer_of_a_given_form(api: openai.OpenAI) -> None:
    create = api.chat.completions.create
    for drawn in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}):
        options: Any = {"model": MODEL, "messages": HI, "max_tokens": 100, **drawn}
        whole = create(**options, response_format=FORM).choices[0]
        assert whole.finish_reason == "stop"
        told = json.loads(whole.message.content or "")
        assert set(told) == {"fruits", "count"}
        assert len(told["fruits"]) == 3
        assert text_of(create(**options, response_format=FORM, stream=True)) == whole.message.content
    free = create(model=MODEL, messages=HI, max_tokens=200, temperature=0, response_format={"type": "json_object"})
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content or ""), dict)
    short: Any = [{"role": "user", "content": "One fruit."}]
    parsed = api.chat.completions.parse(model=MODEL, messages=short, max_tokens=300, seed=1, response_format=Fruit)
    assert parsed.choices[0].message.parsed is not None
    with pytest.raises(openai.BadRequestError):
        create(
            model=MODEL,
            messages=HI,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}},
        )


def test_tools(api: openai.OpenAI) -> None:
    create = api.chat.completions.create
    question: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        asked = create(
            model=MODEL, messages=question, tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=60
        ).choices[0]
        assert asked.finish_reason == "tool_calls"
        assert asked.message.tool_calls is not None
        call = asked.message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["place"] in ("Ghent", "Oslo")
    answer = {"role": "tool", "tool_call_id": call.id, "content": "Rain, 8 degrees."}
    history = [*question, asked.message.model_dump(exclude_none=True), answer]
    told = create(model=MODEL, messages=history, tools=[WEATHER], temperature=0, max_tokens=12)
    assert told.usage is not None
    assert told.usage.completion_tokens > 0
    free = create(model=MODEL, messages=question, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=8)
    assert free.choices[0].message.tool_calls is None


def test_keys_and_quotas(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        served.api("sk-wrong").models.list()
    few = served.api("sk-few").chat.completions
    for _ in range(2):
        few.create(model=MODEL, messages=HI, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as limited:
        few.create(model=MODEL, messages=HI, max_tokens=1)
    assert int(limited.value.response.headers["retry-after"]) > 0
    short = served.api("sk-short").chat.completions.create(model=MODEL, messages=HI, max_tokens=100)
    assert short.usage is not None
    assert short.usage.completion_tokens <= 4


def test_headers_consistency_and_tier(served: Served, api: openai.OpenAI) -> None:
    create = api.chat.completions.with_raw_response.create
    raw = create(model=MODEL, messages=HI, max_tokens=3, service_tier="priority")
    spans = [part.rpartition(":")[2] for part in raw.headers["x-paceline-route"].split(",")]
    assert [spans[0].split("-")[0], spans[-1].split("-")[1], len(spans)] == ["0", "30", 3]
    assert raw.headers["x-paceline-failovers"] == "0"
    assert re.fullmatch("[0-9a-f]{32}", raw.headers["x-paceline-trace"])
    revision = raw.headers["x-paceline-revision"]
    pinned = create(model=MODEL, messages=HI, max_tokens=3, extra_body={"paceline_consistency": f"pinned({revision})"})
    assert pinned.headers["x-paceline-revision"] == revision
    with pytest.raises(openai.APIStatusError) as unmet:
        create(model=MODEL, messages=HI, max_tokens=3, extra_body={"paceline_consistency": f"pinned({'00' * 32})"})
    assert unmet.value.status_code in (404, 409, 503)
    with pytest.raises(openai.BadRequestError):
        create(model=MODEL, messages=HI, max_tokens=3, extra_body={"paceline_consistency": "sometimes"})


def test_a_reader_that_leaves_frees_its_session_and_may_come_back(
    served: Served, api: openai.OpenAI, home: Path
) -> None:
    options: Any = {
        "model": MODEL,
        "messages": HI,
        "max_tokens": 40,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    whole = api.chat.completions.create(**options).choices[0].message.content
    with Client(served.swarm.bootstrap, home=home) as client:
        raw = api.chat.completions.with_raw_response.create(**options, stream=True)
        stream = raw.parse()
        said = ""
        for _ in range(8):
            said += next(stream).choices[0].delta.content or ""
        stream.close()
        while any(node.get("sessions") for node in client.status()):
            pass
    auth = {"authorization": "Bearer sk-all", "last-event-id": "-1"}
    path = f"{served.url}/paceline/streams/{raw.headers['x-paceline-stream']}"
    with httpx2.Client(timeout=60) as http:
        rest = http.get(path, headers=auth).text
    parts = [json.loads(line[6:]) for line in rest.splitlines() if line.startswith("data: {")]
    again = "".join(c["choices"][0]["delta"].get("content", "") for c in parts if c["choices"])
    assert again == whole
    assert again.startswith(said)


def test_no_request_that_the_schema_allows_or_forbids_is_a_server_error(served: Served) -> None:
    """Made up by schemathesis from /openapi.json; half of them ask for the model that is there, and so ride."""
    headers = {"authorization": "Bearer sk-short"}
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(), here=booleans())
        @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def check(case: Any, here: bool) -> None:
            if here and isinstance(case.body, dict):
                case.body["model"] = MODEL
            answer = case.call(base_url=served.url, headers=headers, timeout=60)
            assert answer.status_code < 500, answer.text
            assert '"server_error"' not in answer.text

        check()


def test_a_tail_that_is_killed_costs_no_token_of_a_given_form(served: Served, api: openai.OpenAI) -> None:
    """Last: afterwards a spare serves the tail."""
    options: Any = {"model": MODEL, "messages": HI, "max_tokens": 100, "temperature": 0, "response_format": FORM}
    whole = api.chat.completions.create(**options).choices[0].message.content
    served.swarm.wait_ready([served.swarm.start("spare", "3/3")])
    stream = api.chat.completions.create(**options, stream=True, extra_body={"paceline_events": True})
    said, rides = "", []
    for index, chunk in enumerate(stream):
        said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        if ride := (chunk.model_extra or {}).get("paceline"):
            rides.append(ride)
        if index == 4:
            tail = rides[0]["route"][-1]["peer"]
            next(node for node in served.swarm.nodes if node.peer == tail).kill()
    assert said == whole
    assert len(rides[-1]["failovers"]) == 1
