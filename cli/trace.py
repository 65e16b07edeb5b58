"""`paceline trace`: one answer, and where the time of each of its tokens went."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from paceline.cli.console import console
from paceline.cli.talk import Home, Model, Swarm

if TYPE_CHECKING:
    from paceline.client.results import Result
    from paceline.client.timeline import Timeline, Trip

WIDTH = 60
COLOURS = ("blue", "cyan", "magenta", "green", "yellow", "red")
PARTS = (("·", "on the way"), ("░", "waiting"), ("█", "computing"))


def trace(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "The capital of France is",
    swarm: Swarm = None,
    model: Model = None,
    max_tokens: Annotated[int, typer.Option(help="How many tokens to watch.", min=2)] = 24,
    rows: Annotated[int, typer.Option(help="Show the last so many tokens one by one.", min=0)] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON on standard output.")] = False,
    home: Home = None,
) -> None:
    """Ask for one answer and show where the time of each token went: hops, waits and computing of every stage."""
    from paceline.client.sync import Client
    from paceline.client.timeline import timeline

    with (
        Client(swarm, home=home) as client,
        client.generate(prompt, model=model, max_tokens=max_tokens, ignore_eos=True, trace=True) as answer,
    ):
        pieces = list(answer)
        result = answer.result
    found = timeline(pieces, result)
    if as_json:
        json.dump(as_object(found, result), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    _show(found, result, rows)


def as_object(found: Timeline, result: Result) -> dict[str, Any]:
    """A timeline as JSON. Stages' parts of a trip in µs: hop, wait, compute."""
    return {
        "trace": result.trace,
        "revision": result.revision,
        "ttft_s": result.ttft_s,
        "measured_s": found.measured_s,
        "told_s": found.told_s,
        "stages": [asdict(stage) for stage in found.stages],
        "failovers": [{"index": f.index - result.prompt_tokens, "stall_s": f.stall_s} for f in result.failovers],
        "trips": [asdict(trip) | {"told_s": trip.told_s} for trip in found.trips],
    }


def _show(found: Timeline, result: Result, rows: int) -> None:
    columns = ("stage", "node", "layers", "hop to it", "waiting", "computing", "share")
    table = Table(*columns, title=f"trace {result.trace}")
    for index, stage in enumerate(found.stages):
        mine = stage.hop_s + stage.queue_s + stage.compute_s
        colour = COLOURS[index % len(COLOURS)]
        table.add_row(
            f"[{colour}]{index + 1}[/]",
            stage.rider.peer[-8:],
            f"{stage.rider.start}:{stage.rider.end}",
            *(f"{1e3 * part:.2f} ms" for part in (stage.hop_s, stage.queue_s, stage.compute_s)),
            f"{mine / found.told_s:.0%}" if found.told_s else "",
        )
    console.print(table)
    scale = max((trip.told_s for trip in found.trips[-rows:] if not trip.mended), default=0.0) if rows else 0.0
    for trip in found.trips[-rows:] if rows else ():
        console.print(waterfall(trip, scale), soft_wrap=True)
    console.print("  ".join(f"{sign} {meaning}" for sign, meaning in PARTS), style="dim")
    console.print(
        f"first token after {1e3 * result.ttft_s:.1f} ms; each of {len(found.trips)} more took "
        f"[bold]{1e3 * found.measured_s:.2f} ms[/]; its parts add up to {1e3 * found.told_s:.2f} ms ({found.off:+.1%})",
        soft_wrap=True,
    )


def waterfall(trip: Trip, scale: float) -> Text:
    """One token as one line: its parts in order, as long as they took; `scale` seconds fill the line."""
    line = Text(f"{trip.index:5d} ")
    column, spent = 0, 0.0
    for index, stage in enumerate(trip.stages):
        for (sign, _), part in zip(PARTS, stage, strict=True):
            spent += part / 1e6
            end = min(WIDTH, round(spent / scale * WIDTH)) if scale else 0
            line.append(sign * max(0, end - column), style=COLOURS[index % len(COLOURS)])
            column = max(column, end)
    line.append(" " * (WIDTH - column) + f" {1e3 * trip.took_s:7.2f} ms  {trip.text!r}")
    if trip.mended:
        line.append("  after a repair of the ring", style="red")
    return line
