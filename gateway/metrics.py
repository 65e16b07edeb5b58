"""What the gateway counts, for Prometheus. One registry a gateway: two of them in one process do not mix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from paceline.client.agreement import Agreement
from paceline.client.results import Piece, Result
from paceline.wire.errors import PacelineError

TTFT_S = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 60.0)
TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.5, 1.0, 2.0, 5.0)


SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)

_log = logging.getLogger("paceline.gateway")


class Behind(Protocol):
    """A revision in use (`consistency.staleness.Lag`)."""

    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> bytes: ...
    @property
    def releases(self) -> int: ...
    @property
    def for_s(self) -> float: ...


class _Behind:
    """For a registry: asked anew at each scrape."""

    def __init__(self, lags: Callable[[], Sequence[Behind]]) -> None:
        self._lags = lags

    def collect(self) -> Iterator[Any]:
        """Metric families of now. The same names as a node's (node/metrics.py)."""
        labels = ("model", "revision")
        releases = GaugeMetricFamily(
            "paceline_revision_behind", "Releases that a revision in use is behind", labels=labels
        )
        known = GaugeMetricFamily("paceline_revision_behind_seconds", "Since when that is known", labels=labels)
        for lag in self._lags():
            releases.add_metric((lag.model, lag.revision.hex()[:12]), float(lag.releases))
            known.add_metric((lag.model, lag.revision.hex()[:12]), lag.for_s)
        yield releases
        yield known


class Metrics:
    """Times in seconds."""

    def __init__(self, lags: Callable[[], Sequence[Behind]] = tuple) -> None:
        """`lags`: the revisions that answers run on, and how far each is behind."""
        self.registry = CollectorRegistry()
        self.running = 0
        name = "paceline_gateway"
        self.requests = Counter(f"{name}_requests", "HTTP requests", ("endpoint", "status"), registry=self.registry)
        self.active = Gauge(f"{name}_active", "Answers being generated", registry=self.registry)
        self.ttft = Histogram(f"{name}_ttft_seconds", "Request to first token", buckets=TTFT_S, registry=self.registry)
        self.interval = Histogram(
            f"{name}_token_seconds", "From one token of an answer to the next", buckets=TOKEN_S, registry=self.registry
        )
        self.tokens = Counter(f"{name}_tokens", "Tokens of requests and answers", ("kind",), registry=self.registry)
        self.failovers = Counter(f"{name}_failovers", "Repairs of rings, by tier", ("tier",), registry=self.registry)
        self.errors = Counter(f"{name}_errors", "Answers that ended with an error", ("code",), registry=self.registry)
        self.disconnects = Counter(
            f"{name}_disconnects", "Answers whose reader went away first", registry=self.registry
        )
        self.resumed = Counter(f"{name}_resumed", "Streams that a reader came back for", registry=self.registry)

        self.registry.register(_Behind(lags))
        self.mirrored = Counter(
            f"{name}_mirrored", "Answers asked for again on another revision", ("outcome",), registry=self.registry
        )
        self.mirror_share = Histogram(
            f"{name}_mirror_share",
            "Of an answer: part before the first difference",
            buckets=SHARES,
            registry=self.registry,
        )
        self.mirror_ttft = Histogram(
            f"{name}_mirror_ttft_seconds",
            "Time to first token of both sides of a mirror",
            ("revision",),
            buckets=TTFT_S,
            registry=self.registry,
        )
        self.mirror_token = Histogram(
            f"{name}_mirror_token_seconds",
            "Mean time of a token of both sides of a mirror",
            ("revision",),
            buckets=TOKEN_S,
            registry=self.registry,
        )

    def mirror(self, outcome: str, result: Result, found: Agreement | None) -> None:
        """A mirror is over (`client.mirror.Tell`). Log and metrics; never text."""
        self.mirrored.labels(outcome).inc()
        facts = {"outcome": outcome, "trace": result.trace, "model": result.model}
        _log.info("mirrored", facts if found is None else {**facts, **found.facts()})
        if found is None:
            return
        self.mirror_share.observe(found.share)
        for run in (found.a, found.b):
            self.mirror_ttft.labels(run.revision[:12]).observe(run.ttft_s)
            if run.tokens_per_s > 0:
                self.mirror_token.labels(run.revision[:12]).observe(1 / run.tokens_per_s)

    def page(self) -> bytes:
        """The exposition format's text."""
        return generate_latest(self.registry)


class Watch:
    """One request's part of the metrics. The first `replayed` pieces were counted by another request."""

    def __init__(self, metrics: Metrics, began: float, choices: int, replayed: int) -> None:
        self.tokens = 0
        self._metrics = metrics
        self._last = [began] * choices
        self._first = [True] * choices
        self._replayed = replayed
        metrics.running += 1
        metrics.active.set(metrics.running)

    def piece(self, choice: int, piece: Piece) -> None:
        """A piece has come."""
        if piece.index < self._replayed:
            return
        now = trio.current_time()
        (self._metrics.ttft if self._first[choice] else self._metrics.interval).observe(now - self._last[choice])
        self._last[choice] = now
        self._first[choice] = False
        self.tokens += 1

    def over(self, results: Sequence[Result], error: PacelineError | None, *, complete: bool) -> None:
        """The response is over: `complete`, with an error, or because its reader went away."""
        metrics = self._metrics
        metrics.running -= 1
        metrics.active.set(metrics.running)
        metrics.tokens.labels("prompt").inc(sum(result.prompt_tokens for result in results))
        metrics.tokens.labels("answer").inc(self.tokens)
        for result in results:
            for failover in result.failovers:
                metrics.failovers.labels(failover.tier.value).inc()
        if error is not None:
            metrics.errors.labels(error.code).inc()
        elif not complete:
            metrics.disconnects.inc()
