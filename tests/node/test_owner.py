"""What an owner allows his node, and what it tells Prometheus."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest

from paceline.gateway.metrics import Metrics
from paceline.node.metrics import CountsCollector, StatusCollector, exported
from paceline.node.owner import Rules, load, obey, path_of, save
from tests.swarming import ToySwarm, collect, options, toy_swarm

PROMPT = [5, 3, 1]
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "paceline.json"


@pytest.mark.parametrize(
    ("hours", "minute", "serving"),
    [
        (("22:00", "07:00"), 23 * 60, True),
        (("22:00", "07:00"), 6 * 60 + 59, True),
        (("22:00", "07:00"), 7 * 60, False),
        (("09:00", "17:30"), 9 * 60, True),
        (("09:00", "17:30"), 17 * 60 + 30, False),
        (None, 0, True),
    ],
)
def test_hours_may_pass_midnight(hours: tuple[str, str] | None, minute: int, serving: bool) -> None:
    assert Rules(hours=hours).serving(minute) is serving
    assert not Rules(hours=hours, paused=True).serving(minute)


def test_rules_are_kept_and_nonsense_is_refused(tmp_path: Path) -> None:
    path = path_of(tmp_path, "node")
    assert load(path) == Rules()
    save(path, Rules(pace=0.5, hours=("01:00", "02:00")))
    assert load(path) == Rules(pace=0.5, hours=("01:00", "02:00"))
    for wrong in (b"{", b'{"pace": 0}', b'{"hours": ["25:00", "02:00"]}', b'{"puased": true}'):
        path.write_bytes(wrong)
        with pytest.raises(ValueError):
            load(path)


async def ring(swarm: ToySwarm) -> None:
    for name, span in (("head", (0, 4)), ("middle", (4, 8)), ("tail", (8, 12))):
        await swarm.node(name, span)


async def test_a_paused_node_hands_over_and_takes_nobody_until_it_is_resumed(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with toy_swarm(tmp_path) as swarm, swarm.client() as client:
        await ring(swarm)
        node, path = swarm.nodes["middle"], path_of(tmp_path, "middle")
        swarm.nursery.start_soon(obey, node, path, lambda: 0)
        expected = swarm.expected(PROMPT, 400)
        await swarm.node("spare", (4, 8))
        stream = await client.generate(PROMPT, options(max_tokens=400))
        first = [(await stream.receive()).token for _ in range(5)]  # type: ignore[union-attr]
        riding = swarm.name_of(stream.result().route[1].peer)
        paused = swarm.nodes[riding]
        if riding == "spare":
            swarm.nursery.start_soon(obey, paused, path_of(tmp_path, "spare"), lambda: 0)
        save(path_of(tmp_path, riding), Rules(paused=True))
        assert first + await collect(stream) == expected
        assert len(stream.result().failovers) == 1
        assert paused.status()["state"] == "paused"
        assert len(paused.table) == 0
        save(path_of(tmp_path, riding), Rules())
        await trio.sleep(1.5)
        assert paused.status()["state"] == "serving"
        swarm.kill("spare" if riding == "middle" else "middle")
        again = await client.generate(PROMPT, options(max_tokens=10))
        assert await collect(again) == expected[:10]


async def test_a_throttled_node_works_its_share(tmp_path: Path, autojump_clock: object) -> None:
    async with toy_swarm(tmp_path) as swarm, swarm.client() as client:
        await swarm.node("whole", (0, 12))
        took = {}
        for pace in (1.0, 0.25):
            swarm.nodes["whole"].loop.pace = pace
            began = trio.current_time()
            assert await collect(await client.generate(PROMPT, options(max_tokens=50))) == swarm.expected(PROMPT, 50)
            took[pace] = trio.current_time() - began
        assert took[0.25] > 2 * took[1.0]


def test_counts_are_served_to_prometheus() -> None:
    counts = CountsCollector("paceline_bootstrap", "Counts", lambda: {"members": 3})
    with (
        exported(counts, "127.0.0.1", 0) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page,
    ):
        assert 'paceline_bootstrap{of="members"} 3.0' in page.read().decode()


async def test_the_dashboard_asks_for_metrics_that_exist(tmp_path: Path, autojump_clock: object) -> None:
    async with toy_swarm(tmp_path) as swarm, swarm.client() as client:
        node = await swarm.node("whole", (0, 12))
        await collect(await client.generate(PROMPT, options(max_tokens=5)))
        registry = CollectorRegistry()
        registry.register(StatusCollector(lambda: node.status() | {"rss_bytes": 1, "uptime_s": 1}))
        told = generate_latest(registry).decode() + Metrics().page().decode()
    assert re.search(r"^paceline_node_positions_total [1-9]", told, re.MULTILINE)
    exprs = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    asked = {name for expr in exprs for name in re.findall(r"paceline_\w+", expr)}
    known = set(re.findall(r"paceline_\w+", told))
    plain = {re.sub("_(total|bucket)$", "", name) for name in known} | known
    assert {re.sub("_(total|bucket)$", "", name) for name in asked} <= plain
