"""What several benchmarks share: a swarm of processes for the time of a block, prompts, and how a bar is judged."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from paceline.cli.local_swarm import LocalSwarm, local_swarm
from paceline.client.connect import home_folder
from paceline.engine import default_model
from paceline.store.manifest import Manifest
from paceline.store.store import Store

SUBJECTS = (
    "the tide",
    "a lighthouse keeper",
    "prime numbers",
    "how bread rises",
    "the moons of Jupiter",
    "a chess opening",
    "rain in the desert",
    "an honest thief",
    "the history of paper",
    "why leaves turn red",
)
PROMPTS = tuple(f"Write about {subject}." for subject in SUBJECTS) + tuple(
    f"Question: what should everybody know about {subject}?\nAnswer:" for subject in SUBJECTS
)


@dataclass
class Bars:
    """Collects verdicts; `failed` decides the exit status."""

    failed: list[str] = field(default_factory=list)

    def check(self, what: str, good: bool, shown: str) -> None:
        """Print one line, and remember a miss."""
        print(f"{'ok    ' if good else 'MISSED'} {what}: {shown}", flush=True)
        if not good:
            self.failed.append(what)

    def exit_status(self) -> int:
        """0 where every bar was met."""
        print("all bars met" if not self.failed else f"{len(self.failed)} missed: {'; '.join(self.failed)}")
        return 1 if self.failed else 0


def default_manifest() -> tuple[Store, Manifest]:
    """The default model, pulled if it is absent."""
    store = Store(home_folder() / "store")
    return store, default_model.ensure(store)


def equal_parts(parts: int, replicas: int = 1) -> list[str]:
    """Spans ``1/parts`` … ``parts/parts``, each `replicas` times."""
    return [f"{part}/{parts}" for part in range(1, parts + 1)] * replicas


@contextmanager
def processes(spans: Sequence[str], *options: str) -> Iterator[LocalSwarm]:
    """Node processes of the default model serving `spans`, each free to use all cores."""
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as folder,
        local_swarm(home_folder(), Path(folder), default_model.NAME, spans, options=options) as swarm,
    ):
        yield swarm


def machine() -> str:
    """One line about where the figures come from."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load}"
