"""`paceline top`: the swarm, live."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from paceline.cli.console import console
from paceline.cli.interrupts import raise_instead
from paceline.cli.status import coverage
from paceline.cli.talk import Home, Swarm


def top(
    swarm: Swarm = None,
    home: Home = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 1.0,
    count: Annotated[int, typer.Option(help="Stop after so many looks; 0: at Ctrl-C.", min=0)] = 0,
) -> None:
    """Nodes, load and speed, renewed every second until Ctrl-C."""
    from paceline.client.sync import Client

    with Client(swarm, home=home) as client:
        raise_instead()
        before, looks, at = client.status(), 0, time.monotonic()
        with Live(console=console, auto_refresh=False) as live:
            while not count or looks < count:
                time.sleep(every)
                nodes, now = client.status(), time.monotonic()
                live.update(picture(nodes, before, now - at), refresh=True)
                before, at, looks = nodes, now, looks + 1


def picture(nodes: list[dict[str, Any]], before: list[dict[str, Any]], seconds: float) -> Group:
    """The table of now; rates are over `seconds` since `before`."""
    table = Table("node", "layers", "state", "sessions", "busy", "positions/s", "batch", "KV free", "memory", "nearest")
    earlier = {node["peer"]: node.get("engine", {}) for node in before}
    for node in sorted(nodes, key=lambda node: _first_layer(node)):
        table.add_row(*row(node, earlier.get(node["peer"], {}), seconds))
    return Group(table, *coverage(nodes))


def row(node: dict[str, Any], earlier: dict[str, float], seconds: float) -> list[str]:
    """One node."""
    who = f"{node.get('agent', '').partition('/')[2]} {node['peer'][-8:]}".strip()
    if "engine" not in node:
        return [who, "", f"[red]silent[/] {node.get('error', '')[:40]}", *[""] * 7]
    spent = {name: node["engine"][name] - earlier.get(name, node["engine"][name]) for name in node["engine"]}
    batch = spent["works"] / spent["steps"] if spent.get("steps") else 0.0
    rtts = [rtt for rtt in node["rtt_s"].values() if rtt is not None]
    return [
        who,
        " ".join(service["span"] for service in node["services"]),
        node["state"],
        str(node["sessions"]),
        f"{min(1.0, spent['busy_s'] / seconds):.0%}",
        f"{spent['positions'] / seconds:.0f}",
        f"{batch:.1f}" if batch else "–",
        " ".join(str(service["kv_free"]) for service in node["services"]),
        f"{node.get('rss_bytes', 0) / 1e6:.0f} MB",
        f"{1e3 * min(rtts):.1f} ms" if rtts else "–",
    ]


def _first_layer(node: dict[str, Any]) -> int:
    services = node.get("services") or [{"span": "9999:"}]
    return int(services[0]["span"].split(":")[0])
