"""A process's account of itself for Prometheus, on a port of its own, made from its status whenever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from paceline.wire.errors import InvalidRequest

GAUGES = {
    "sessions": "Sessions that ride here",
    "journal_bytes": "Held by all journals",
    "rss_bytes": "Resident memory",
    "uptime_s": "Seconds since the start",
}
STEPS = {
    "steps": "Engine steps",
    "works": "Works of sessions in engine steps",
    "positions": "Positions computed",
    "busy_s": "Seconds in the engine",
}


class Collector(Protocol):
    """What a registry asks."""

    def collect(self) -> Iterable[Any]:
        """Metric families of now."""
        ...


class StatusCollector:
    """For a registry. `status`: the account, from any thread."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterable[Any]:
        """Metric families of now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        told = self._status()
        for name, what in GAUGES.items():
            if name in told:
                yield GaugeMetricFamily(f"paceline_node_{name}", what, value=float(told[name]))
        for name, what in STEPS.items():
            yield CounterMetricFamily(f"paceline_node_{name}", what, value=float(told["engine"][name]))
        free = GaugeMetricFamily("paceline_node_kv_free", "Positions of KV still free", labels=("model", "span"))
        for service in told["services"]:
            free.add_metric((service["model"], service["span"]), float(service["kv_free"]))
        yield free
        yield from behind(told["behind"])
        events = CounterMetricFamily("paceline_node_events", "Counted events and errors", labels=("event",))
        for event, count in {**told["counters"], **told["links"]["errors"]}.items():
            events.add_metric((event,), float(count))
        yield events
        rtt = GaugeMetricFamily("paceline_node_rtt_s", "Round trip to a peer", labels=("peer",))
        for peer, seconds in told["rtt_s"].items():
            if seconds is not None:
                rtt.add_metric((peer,), float(seconds))
        yield rtt


def behind(lags: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """Of each revision in use (`consistency.staleness.Lag.facts`): how far behind, and for how long."""
    from prometheus_client.core import GaugeMetricFamily

    labels = ("model", "revision")
    releases = GaugeMetricFamily("paceline_revision_behind", "Releases that a revision in use is behind", labels=labels)
    known = GaugeMetricFamily("paceline_revision_behind_seconds", "Since when that is known", labels=labels)
    for lag in lags:
        which = (lag["model"], lag["revision"][:12])
        releases.add_metric(which, float(lag["releases"]))
        known.add_metric(which, float(lag["for_s"]))
    yield releases
    yield known


class CountsCollector:
    """Plain counts by name, as one family with a label. `counts`: the numbers of now, from any thread."""

    def __init__(self, name: str, what: str, counts: Callable[[], Mapping[str, int]]) -> None:
        self._name, self._what, self._counts = name, what, counts

    def collect(self) -> Iterable[Any]:
        """Metric families of now."""
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(self._name, self._what, labels=("of",))
        for name, count in self._counts().items():
            family.add_metric((name,), float(count))
        yield family


def listening(at: str) -> tuple[str, int]:
    """PORT, or HOST:PORT → host and port. Raises InvalidRequest."""
    host, _, port = at.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise InvalidRequest(f"metrics at {at!r}", cure="write a port, or host:port")
    return host.strip("[]") or "127.0.0.1", int(port)


@contextmanager
def exported(collector: Collector, host: str, port: int) -> Iterator[int]:
    """Served on a thread of its own during the block; the port. Raises InvalidRequest where it cannot."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise InvalidRequest("metrics need prometheus_client", cure="pip install 'paceline[node]'") from error
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise InvalidRequest(f"metrics: cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
