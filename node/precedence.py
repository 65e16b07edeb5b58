"""In what order sessions get a node's next step. Pure: knows owners and priorities, not what a step is.

Those that decode come before prompts. Among the sessions of *one* owner those of higher priority come first, in the
places that the owner's sessions have anyhow: claiming a priority takes nothing from others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Standing(NamedTuple):
    """One session's. `prefills`: it has positions to catch up before its next token."""

    owner: str
    prefills: bool
    priority: int


def ordered(keys: Sequence[Key], standings: Sequence[Standing]) -> list[Key]:
    """`keys` (in turn, the longest waiting first) in the order in which they go; each with its standing."""
    line = sorted(zip(keys, standings, strict=True), key=lambda each: each[1].prefills)
    if not any(standing.priority for _, standing in line):
        return [key for key, _ in line]
    mine: dict[str, deque[Key]] = {}
    for key, standing in sorted(line, key=lambda each: (each[1].prefills, -each[1].priority)):
        mine.setdefault(standing.owner, deque()).append(key)
    return [mine[standing.owner].popleft() for _, standing in line]
