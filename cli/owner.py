"""`paceline pause`, `resume`, `throttle`, `hours`: what this machine's owner allows the nodes that run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.console import console
from paceline.cli.talk import Home
from paceline.wire.errors import InvalidRequest

if TYPE_CHECKING:
    from paceline.node.owner import Rules

Name = Annotated[str, typer.Option(help="Which node of this machine, by the name of its identity.")]


def pause(name: Name = "node", home: Home = None) -> None:
    """Serve nobody until `paceline resume`; answers that ride here move to other nodes within seconds."""
    _change(home, name, paused=True)


def resume(name: Name = "node", home: Home = None) -> None:
    """Serve again."""
    _change(home, name, paused=False)


def throttle(
    share: Annotated[float, typer.Argument(help="Share of the time that the model may compute, such as 0.5; 1: all.")],
    name: Name = "node",
    home: Home = None,
) -> None:
    """Leave a part of this machine's time to others."""
    if not 0.01 <= share <= 1.0:
        raise InvalidRequest(f"share {share:g}", cure="choose from 0.01 to 1")
    _change(home, name, pace=share)


def hours(
    when: Annotated[str, typer.Argument(help="From and until in local time, such as 22:00-07:00; `always`.")],
    name: Name = "node",
    home: Home = None,
) -> None:
    """Serve at these hours of the day only."""
    found = re.fullmatch(r"(([01]\d|2[0-3]):[0-5]\d)-(([01]\d|2[0-3]):[0-5]\d)", when)
    if when != "always" and found is None:
        raise InvalidRequest(f"hours {when!r}", cure="write them as 22:00-07:00, or `always`")
    _change(home, name, hours=None if found is None else (found[1], found[3]))


def _change(home: Path | None, name: str, **changes: Any) -> None:
    from msgspec.structs import replace

    from paceline.client.connect import home_folder
    from paceline.node.owner import Rules, load, path_of, save

    path = path_of(home_folder(home), name)
    try:
        rules = load(path)
    except ValueError:
        rules = Rules()
    rules = replace(rules, **changes)
    save(path, rules)
    console.print(f"{name}: {in_words(rules)}")


def in_words(rules: Rules) -> str:
    """For people."""
    if rules.paused:
        return "paused"
    when = "always" if rules.hours is None else f"from {rules.hours[0]} to {rules.hours[1]}"
    return f"serves {when}" + ("" if rules.pace == 1.0 else f", at most {rules.pace:.0%} of the time")
