"""The official client against a gateway on the toy swarm: every feature that the gateway claims."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import openai
import pytest

from paceline.gateway.config import ApiKey, GatewayConfig
from tests.gateway.asking import asking
from tests.gateway.toying import TextSwarm, ids, text_swarm

HI = [{"role": "user", "content": "hi"}]
KEY = ApiKey(name="test", key="sk-test")
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


@asynccontextmanager
async def client(folder: Path) -> AsyncIterator[tuple[openai.AsyncOpenAI, TextSwarm]]:
    """The client, and the swarm whose answers can be scripted."""
    async with text_swarm(folder) as swarm, asking(swarm, GatewayConfig(keys=(KEY,))) as ask:
        transport = httpx2.ASGITransport(ask.gateway.app)
        async with httpx2.AsyncClient(transport=transport) as http:
            yield openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="sk-test", http_client=http), swarm


async def test_models(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, _):
        assert [model.id async for model in api.models.list()] == ["toy"]
        assert (await api.models.retrieve("toy")).owned_by == "paceline"


async def test_chat_whole_and_streamed(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, swarm):
        swarm.say("Riding 自 in line.")
        whole = await api.chat.completions.create(model="toy", messages=HI)  # type: ignore[arg-type]
        assert whole.choices[0].message.content == "Riding 自 in line."
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 18
        stream = await api.chat.completions.create(
            model="toy",
            messages=HI,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Riding 自 in line."
        assert chunks[-1].usage == whole.usage
        async with api.chat.completions.stream(model="toy", messages=HI) as events:  # type: ignore[arg-type]
            final = await events.get_final_completion()
        assert final.choices[0].message.content == "Riding 自 in line."


async def test_stop_seed_and_lengths(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, swarm):
        create = api.chat.completions.create
        sampled = [await create(model="toy", messages=HI, seed=7, max_tokens=20) for _ in range(2)]  # type: ignore[arg-type]
        assert sampled[0].choices[0].message.content == sampled[1].choices[0].message.content
        assert sampled[0].choices[0].finish_reason == "length"
        assert sampled[0].system_fingerprint == sampled[1].system_fingerprint
        extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True}
        more = await create(
            model="toy",
            messages=HI,  # type: ignore[arg-type]
            max_completion_tokens=5,
            temperature=0.5,
            top_p=0.9,
            frequency_penalty=0.1,
            presence_penalty=0.1,
            extra_body=extra,
        )
        assert more.usage is not None
        assert more.usage.completion_tokens == 5
        swarm.say("one, two, three")
        stopped = await create(model="toy", messages=HI, stop=["tw", ", th"])  # type: ignore[arg-type]
        assert stopped.choices[0].message.content == "one, "
        assert stopped.choices[0].finish_reason == "stop"


async def test_choices_and_log_probabilities(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, _):
        many = await api.chat.completions.create(
            model="toy",
            messages=HI,
            n=2,
            max_tokens=6,
            logprobs=True,
            top_logprobs=2,  # type: ignore[arg-type]
        )
        assert [choice.index for choice in many.choices] == [0, 1]
        assert many.choices[0].message.content != many.choices[1].message.content
        logprobs = many.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        told = "".join(each.token for each in logprobs.content if not each.token.startswith("<|"))
        assert told == many.choices[0].message.content
        assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in logprobs.content)


async def test_tools(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, swarm):
        swarm.say('<tool_call>\n{"name": "weather", "arguments": {"place": "Ghent"}}\n</tool_call>')
        create = api.chat.completions.create
        asked = await create(model="toy", messages=HI, tools=[TOOL])  # type: ignore[list-item,arg-type]
        message = asked.choices[0].message
        assert asked.choices[0].finish_reason == "tool_calls"
        assert message.content is None
        assert message.tool_calls is not None
        call = message.tool_calls[0]
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("weather", '{"place": "Ghent"}')
        swarm.say("Rain.")
        history = [
            *HI,
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "8°"},
        ]
        told = await create(model="toy", messages=history, tools=[TOOL])  # type: ignore[list-item,arg-type]
        assert told.choices[0].message.content == "Rain."
        swarm.say('<tool_call>{"name": "x"}</tool_call>')
        plain = await create(model="toy", messages=HI, tools=[TOOL], tool_choice="none")  # type: ignore[list-item,arg-type]
        assert plain.choices[0].message.content == '<tool_call>{"name": "x"}</tool_call>'


async def test_text_completions(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, swarm):
        by_text = await api.completions.create(model="toy", prompt="abc", max_tokens=8, temperature=0)
        by_ids = await api.completions.create(model="toy", prompt=ids("abc"), max_tokens=8, temperature=0, logprobs=2)
        assert by_text.choices[0].text == by_ids.choices[0].text
        logprobs = by_ids.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.text_offset == list(range(8))
        swarm.say("and on")
        several = await api.completions.create(model="toy", prompt=["ab", "cd"], n=2, echo=True)
        assert [choice.text for choice in several.choices] == ["aband on", "aband on", "cdand on", "cdand on"]
        assert several.usage is not None
        assert several.usage.prompt_tokens == 4
        stream = await api.completions.create(model="toy", prompt=[ids("ab"), ids("cd")], echo=True, stream=True)
        texts = ["", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == ["aband on", "cdand on"]


async def test_responses(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, swarm):
        swarm.say("A paceline.")
        whole = await api.responses.create(model="toy", input="hi", instructions="be brief")
        assert whole.output_text == "A paceline."
        assert whole.status == "completed"
        cut = await api.responses.create(model="toy", input=[{"role": "user", "content": "hi"}], max_output_tokens=3)
        assert (cut.status, cut.output_text) == ("incomplete", "A p")
        events = [event async for event in await api.responses.create(model="toy", input="hi", stream=True)]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "A paceline."
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == "A paceline."
        async with api.responses.stream(model="toy", input="hi") as stream:
            assert (await stream.get_final_response()).output_text == "A paceline."


async def test_errors_are_the_clients_own(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, _):
        create = api.chat.completions.create
        with pytest.raises(openai.NotFoundError):
            await create(model="other", messages=HI)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError) as refused:
            await create(model="toy", messages=HI, max_tokens=-1)  # type: ignore[arg-type]
        assert refused.value.param == "max_tokens"
        with pytest.raises(openai.AuthenticationError):
            await api.with_options(api_key="wrong").models.list()


async def test_headers_tell_the_ride(tmp_path: Path, autojump_clock: object) -> None:
    async with client(tmp_path) as (api, _):
        raw = await api.chat.completions.with_raw_response.create(model="toy", messages=HI, max_tokens=3)  # type: ignore[arg-type]
        spans = [part.rpartition(":")[2] for part in raw.headers["x-paceline-route"].split(",")]
        assert spans == ["0-4", "4-8", "8-12"]
        assert len(raw.headers["x-paceline-revision"]) == 64
        assert raw.headers["x-paceline-failovers"] == "0"
