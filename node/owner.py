"""What a machine's owner allows its node: pause, throttle, hours of the day. A small file says so; the node looks at it
every second, so that a command works on a node that runs.

Knows the file and the clock; the node does what is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import trio
from msgspec import Meta, Struct

if TYPE_CHECKING:
    from paceline.node.node import Node

LOOK_S = 1.0
Clock = Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """`pace`: share of the time that the engine may work. `hours`: from and until, local time; may pass midnight."""

    paused: bool = False
    pace: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    hours: tuple[Clock, Clock] | None = None

    def serving(self, minute: int) -> bool:
        """Whether the node may serve at this minute of the day."""
        if self.paused or self.hours is None:
            return not self.paused
        begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in self.hours)
        return begin <= minute < end if begin <= end else minute >= begin or minute < end


def path_of(home: Path, name: str) -> Path:
    """Where the rules for identity `name` lie."""
    return home / "owner" / f"{name}.json"


def load(path: Path) -> Rules:
    """The rules; none where there is no file. Raises ValueError for a file that is none of ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Rules)
    except FileNotFoundError:
        return Rules()


def save(path: Path, rules: Rules) -> None:
    """Put the rules in place, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.encode(rules))
    partial.replace(path)


def minute_of_day() -> int:
    """Of local time."""
    now = datetime.now().astimezone()
    return now.hour * 60 + now.minute


async def obey(node: Node, path: Path, minute: Callable[[], int] = minute_of_day) -> None:
    """Until cancelled. A file that cannot be read changes nothing."""
    rules = Rules()
    while True:
        try:
            rules = load(path)
        except (OSError, ValueError):
            node.table.counters["owner_file_unreadable"] += 1
        node.loop.pace = rules.pace
        await node.pause(not rules.serving(minute()))
        await trio.sleep(LOOK_S)
