"""Real processes on loopback with the real model; everything they leave behind goes with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.cli.local_swarm import LocalSwarm, local_swarm
from paceline.engine import default_model
from paceline.store.store import Store

HOME = Path(__file__).parents[2] / "build" / "test-home"


@pytest.fixture(scope="session")
def home() -> Path:
    """A home with the default model in it; kept between runs, since the model is pinned by its hash."""
    default_model.ensure(Store(HOME / "store"))
    return HOME


@pytest.fixture(scope="module")
def swarm(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """Three thirds of the model, and a second holder of each."""
    spans = ["1/3", "2/3", "3/3"] * 2
    with local_swarm(home, tmp_path_factory.mktemp("swarm"), default_model.NAME, spans) as running:
        yield running
