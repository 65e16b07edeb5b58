"""`paceline status` and `paceline route`: what the swarm says of itself, and which ring a request would ride."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from paceline.cli.console import console
from paceline.cli.talk import Home, Model, Objective, Swarm
from paceline.wire.limits import MAX_STAGES

if TYPE_CHECKING:
    from paceline.client.connect import ClientConfig


def status(
    swarm: Swarm = None,
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON on standard output.")] = False,
) -> None:
    """Nodes, their layers, speed, load and counted errors; and whether every layer of each model is covered."""
    from paceline.client.sync import Client

    with Client(swarm, home=home) as client:
        nodes = client.status()
    if as_json:
        json.dump(nodes, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table("node", "state", "model", "layers", "decode", "sessions", "KV free", "memory", "errors")
    for node in nodes:
        table.add_row(*_row(node))
    console.print(table)
    for line in (*coverage(nodes), *behind(nodes)):
        console.print(line, soft_wrap=True)


def _row(node: dict[str, Any]) -> list[str]:
    who = f"{node.get('agent', '')} {node['peer'][-8:]}".strip()
    if "error" in node:
        return [who, "[red]silent[/]", "", "", "", "", "", "", node["error"]]
    services = node["services"]
    faults = {**node["counters"], **node["links"]["errors"], **node.get("transport", {})}
    return [
        who,
        node["state"],
        "\n".join(s["model"] for s in services),
        "\n".join(s["span"] for s in services),
        "\n".join(_decode(s) for s in services),
        str(node["sessions"]),
        "\n".join(str(s["kv_free"]) for s in services),
        f"{node.get('rss_bytes', 0) / 1e6:.0f} MB",
        ", ".join(f"{name} {count}" for name, count in sorted(faults.items()) if count),
    ]


def _decode(service: dict[str, Any]) -> str:
    """What a token takes, and what a thousand positions of past add to it, where the node has measured it."""
    past_ms = service.get("decode_past_s", 0.0) * 1e6
    return f"{service['decode_s'] * 1e3:.1f} ms" + (f" + {past_ms:.1f}/1000" if past_ms else "")


def coverage(nodes: list[dict[str, Any]]) -> list[str]:
    """One line a model: whether every layer of it is held."""
    held: dict[tuple[str, str, int], set[int]] = {}
    for node in nodes:
        for service in node.get("services", ()):
            start, end = (int(part) for part in service["span"].split(":"))
            key = (service["model"], service["revision"][:12], service["layers"])
            held.setdefault(key, set()).update(range(start, end))
    lines = []
    for (model, revision, layers), covered in sorted(held.items()):
        missing = layers - len(covered)
        verdict = "[green]complete[/]" if not missing else f"[red]{missing} of {layers} layers missing[/]"
        lines.append(f"{model} {revision}: {verdict}")
    return lines or ["[yellow]the swarm is empty[/]: start a node with paceline node"]


def behind(nodes: list[dict[str, Any]]) -> list[str]:
    """One line for each node and revision that has been behind what is released for longer than that node allows."""
    return [
        f"[yellow]{node['peer'][-8:]} is behind[/]: {lag['model']} {lag['revision'][:12]} by {lag['releases']} "
        f"release{'s' if lag['releases'] > 1 else ''} for {lag['for_s'] / 60:.0f} min"
        for node in nodes
        for lag in node.get("behind", ())
        if lag["overdue"]
    ]


Peers = Annotated[list[str] | None, typer.Option(help="Peer id (repeat for several).")]


def route(
    swarm: Swarm = None,
    home: Home = None,
    model: Model = None,
    positions: Annotated[int, typer.Option(help="Prompt and answer together, in tokens.", min=1)] = 512,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt, for the time to the first one.", min=1)] = 1,
    revision: Annotated[
        str | None, typer.Option(help="Revision in hex; None: the best replicated complete one.")
    ] = None,
    trusted: Peers = None,
    without: Peers = None,
    ends: Peers = None,
    region: Annotated[list[str] | None, typer.Option(help="Only nodes of this region (repeat).")] = None,
    numerics: Annotated[str | None, typer.Option(help="Only this numerics class.")] = None,
    max_hops: Annotated[int, typer.Option(help="Most stages of the ring.", min=1)] = MAX_STAGES,
    objective: Objective = "latency",
    draw: Annotated[
        int, typer.Option(help="Seed of the draw, where the objective draws; a session has its own.", min=0)
    ] = 0,
    brief: Annotated[bool, typer.Option("--brief/--explain", help="Leave the runner-up out: quicker.")] = False,
) -> None:
    """Which ring a request would ride now, what it is predicted to cost, and how the runner-up compares.

    `--trusted`: only these may ride. `--without`: these may not. `--ends`: only these hold the first and last layers.
    """
    import trio

    from paceline.client.connect import ClientConfig, as_addresses
    from paceline.client.options import objective_named

    wanted = {
        "positions": max(positions, prompt), "prompt": prompt, "trusted": _set(trusted), "ends": _set(ends),
        "excluded": _set(without) or frozenset(), "regions": _set(region), "numerics": numerics, "max_stages": max_hops,
        "objective": objective_named(objective), "seed": draw % (1 << 64),
    }  # fmt: skip
    config = ClientConfig(as_addresses(swarm), home)
    sys.stdout.write(trio.run(_explained, config, model, revision, wanted, brief) + "\n")


def _set(values: list[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


async def _explained(
    config: ClientConfig, model: str | None, revision: str | None, wanted: dict[str, Any], brief: bool
) -> str:
    import trio

    from paceline.client.chooser import newest_revision
    from paceline.client.connect import connect
    from paceline.routing.ring import RingRequest, chosen_ring, explain, runner_up

    async with connect(config) as core:
        name = await core.model_name(model, 5.0)
        await newest_revision(core.swarm, name, 5.0)
        await trio.sleep(0.7)  # round trips of the links just opened
        view, found = await newest_revision(core.swarm, name, 5.0)
        if revision is not None:
            found = next((it for it in view.revisions if it.hex().startswith(revision.lower())), bytes(32))
        plan = chosen_ring(view, RingRequest(found, **wanted))
        return explain(plan) if brief else explain(plan, runner_up(view, plan))
