"""OpenTelemetry spans of answers: one trace an answer, with a span for each token and for each stage of its trip.

Exported over OTLP where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says where to, as every OpenTelemetry program does; needs
``pip install 'paceline[telemetry]'``. The trace's id is the session's name in the logs of all nodes that took part
(`wire.ids.trace_id`), unless the caller sent a ``traceparent``: then the answer is a part of the caller's trace. Times
are laid out on this process's clock: other machines' clocks differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from paceline.client.results import Piece, Result
from paceline.wire.errors import InvalidRequest, PacelineError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
NS = 1_000_000_000


def configured() -> Spans | None:
    """Spans, where the environment names a collector, else None. Raises InvalidRequest where packages are absent."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        cure = "pip install 'paceline[telemetry]', or unset it"
        raise InvalidRequest(f"{ENDPOINTS[0]} is set, but OpenTelemetry is not installed", cure=cure) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "paceline-gateway"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider)


class Spans:
    """Writes answers to `provider`. `unix_ns`: now."""

    def __init__(self, provider: TracerProvider, unix_ns: Callable[[], int] | None = None) -> None:
        import time

        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("paceline")
        self._propagator = TraceContextTextMapPropagator()
        self._now = unix_ns or time.time_ns

    def begin(self, headers: Mapping[str, str], result: Result, endpoint: str) -> Answer:
        """An answer begins; `headers` may hold a traceparent."""
        context = self._propagator.extract(headers)
        parent = context if context else self._root(result.trace)
        now = self._now()
        span = self._tracer.start_span(f"paceline {endpoint}", parent, start_time=now)
        span.set_attributes(
            {
                "gen_ai.request.model": result.model,
                "gen_ai.usage.input_tokens": result.prompt_tokens,
                "paceline.trace": result.trace,
                "paceline.revision": result.revision,
            }
        )
        return Answer(self, span, now)

    def _root(self, trace: str) -> Context:
        """A parent that gives the trace its id; the span behind it is the client's session itself."""
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        known = SpanContext(int(trace, 16), int(trace[:16], 16), is_remote=True, trace_flags=TraceFlags(1))
        return set_span_in_context(NonRecordingSpan(known))

    def close(self) -> None:
        """Export what is left; waits for the collector, a short while."""
        self._provider.shutdown()


class Answer:
    """The span of one answer, and what hangs below it."""

    def __init__(self, spans: Spans, span: Span, now: int) -> None:
        from opentelemetry.trace import set_span_in_context

        self._spans, self._span, self._last = spans, span, now
        self._below = set_span_in_context(span)

    def piece(self, piece: Piece, route: Sequence[str]) -> None:
        """A token has come; `route`: the ring's stages by name."""
        from opentelemetry.trace import set_span_in_context

        now, tracer = self._spans._now(), self._spans._tracer
        token = tracer.start_span(f"token {piece.index}", self._below, start_time=self._last)
        below = set_span_in_context(token)
        at = now - sum(map(sum, piece.timings)) * 1000
        for name, (hop, queue, compute) in zip(route, piece.timings, strict=False):
            begin, at = at + hop * 1000, at + (hop + queue + compute) * 1000
            stage = tracer.start_span(f"stage {name}", below, start_time=begin)
            stage.set_attributes({"paceline.hop_us": hop, "paceline.queue_us": queue, "paceline.compute_us": compute})
            stage.end(at)
        token.end(now)
        self._last = now

    def over(self, result: Result, error: PacelineError | None) -> None:
        """The answer is over."""
        from opentelemetry.trace import StatusCode

        for failover in result.failovers:
            facts = {"lost": list(failover.lost), "tier": failover.tier.value, "stall_s": failover.stall_s}
            self._span.add_event("failover", {"index": failover.index - result.prompt_tokens, **facts})
        self._span.set_attribute("gen_ai.usage.output_tokens", len(result.tokens))
        self._span.set_attribute("paceline.route", [f"{r.peer}:{r.start}-{r.end}" for r in result.route])
        if error is not None:
            self._span.set_status(StatusCode.ERROR, error.code)
        self._span.end(self._spans._now())
