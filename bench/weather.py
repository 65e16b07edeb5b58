"""A link profile file that a benchmark rewrites while its swarm runs (its format: docs/link-profiles.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LOOKED_AT_S = 0.3
"""Processes look at the file every 50 ms; after so long a change is in force everywhere."""


class Weather:
    """What all links are like (`everywhere`), and who is cut off."""

    def __init__(self, file: Path, seed: int = 1) -> None:
        self.file = file
        self._seed = seed
        self._base: dict[str, Any] = {}
        self._cut: set[str] = set()
        self.everywhere()

    def everywhere(self, base: str | None = None, **row: float) -> None:
        """One kind of link between all: a built-in profile, figures of a row, or neither."""
        self._base = {"base": base} if base else {}
        self._rows: list[Mapping[str, Any]] = [{"from": "*", "to": "*", **row}] if row else []
        self._write()

    def cut(self, peers: Iterable[str]) -> None:
        """These peers reach nobody, besides those cut off already."""
        self._cut |= set(peers)
        self._write()

    def heal(self, peers: Iterable[str] | None = None) -> None:
        """These, or all, reach everybody again."""
        self._cut -= set(self._cut if peers is None else peers)
        self._write()

    def _write(self) -> None:
        cuts = [{"from": peer, "to": "*", "partition": True} for peer in sorted(self._cut)]
        text = json.dumps({**self._base, "seed": self._seed, "links": [*self._rows, *cuts]})
        partial = self.file.with_suffix(".part.json")
        partial.write_text(text)
        partial.replace(self.file)
