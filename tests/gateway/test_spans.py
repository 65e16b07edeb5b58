"""What a collector of OpenTelemetry gets of an answer: one trace, every token, every stage, and the parts add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from paceline.gateway.app import gateway
from paceline.gateway.config import GatewayConfig
from paceline.gateway.spans import Spans
from tests.gateway.asking import Answer, Asker
from tests.gateway.toying import text_swarm

ASK = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "ignore_eos": True}


async def told(folder: Path, headers: dict[str, str], body: dict[str, object]) -> tuple[Answer, list[ReadableSpan]]:
    """One answer, and the spans that were exported of it."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans(provider, lambda: int(trio.current_time() * 1e9))
    async with text_swarm(folder) as swarm, swarm.client() as core, trio.open_nursery() as nursery:
        ask = Asker(gateway(core, GatewayConfig(), spans), core, nursery)
        answer = await ask.post("/v1/chat/completions", ASK | body, headers)
    return answer, list(exporter.get_finished_spans())


async def test_one_trace_holds_every_token_and_stage(tmp_path: Path, autojump_clock: object) -> None:
    answer, spans = await told(tmp_path, {}, {"stream": True})
    assert "timings" not in answer.body.decode()  # a collector's trace does not change the answer
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {answer.headers["x-paceline-trace"]}
    tokens = [span for span in spans if span.name.startswith("token")]
    assert [span.name for span in tokens] == [f"token {index}" for index in range(20)]
    spent = 0
    for token in tokens[5:]:
        stages = [span for span in spans if span.parent and token.context and span.parent == token.context]
        assert [span.name.split()[1] for span in stages] == ["0:4", "4:8", "8:12"]
        spent += sum(length(span) + int(str((span.attributes or {})["paceline.hop_us"])) * 1000 for span in stages)
    assert spent == pytest.approx(sum(map(length, tokens[5:])), rel=0.1)
    (root,) = [span for span in spans if span.name == "paceline chat"]
    assert root.attributes is not None
    assert root.attributes["gen_ai.usage.output_tokens"] == 20


async def test_a_callers_trace_goes_on(tmp_path: Path, autojump_clock: object) -> None:
    parent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    _, spans = await told(tmp_path, {"traceparent": parent}, {})
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {"ab" * 16}
    assert sum(span.name.startswith("stage") for span in spans) == 60


def length(span: ReadableSpan) -> int:
    """In nanoseconds."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.end_time - span.start_time
