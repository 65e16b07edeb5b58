"""Where a node that lacks blocks gets them from: peers, and where they have none, what its owner has named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from paceline.engine.loading import LoadConfig
from paceline.net.identity import Identity
from paceline.node.weights import Weights
from paceline.node.weights_join import Joiner
from paceline.store.manifest import Manifest
from paceline.store.releases import Releases
from paceline.store.store import Store
from paceline.store.trust import Trust
from paceline.wire.errors import PeerUnavailable
from paceline.wire.ids import Span
from tests.node.test_upgrade import manifest
from tests.node.test_weights_fetch import Lab


@pytest.fixture
async def lab(tmp_path: Path, nursery: trio.Nursery) -> Lab:
    return Lab(tmp_path, nursery)


@pytest.fixture
def refilled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the owner's source was asked for."""
    asked: list[Any] = []

    async def refill(store: Store, manifest: Manifest, span: Span, source: str, in_thread: object) -> None:
        await trio.lowlevel.checkpoint()
        asked.append((manifest.revision, span, source))

    monkeypatch.setattr("paceline.node.weights_join.refill", refill)
    return asked


def joiner(store: Store, source: str, *, alone: bool = False) -> Joiner:
    weights = Weights(store, Releases(store, Trust()), Identity.ephemeral(), lambda: 0.0)
    engine: Any = None
    return Joiner(weights, engine, LoadConfig(), lambda *step: None, alone=alone, shadow=False, source=source)


async def ensure(lab: Lab, source: str, *, alone: bool = False, peers: bool = False) -> Manifest:
    """A node that wants a model of which its peers have all, or nothing."""
    made = manifest(Store(lab.folder / "elsewhere"), 1)
    if peers:
        await lab.serve("a", [bytes([layer, 1 if layer == 5 else 0]) for layer in range(len(made.layers))])
    async with lab.fetcher() as fetcher:

        async def offers() -> list[Any]:
            return [SimpleNamespace(peer=at.peer, at=at, services=()) for at in lab.peers.values()]

        node: Any = SimpleNamespace(fetcher=fetcher, directory=SimpleNamespace(offers=offers))
        await joiner(Store(lab.folder / "empty"), source, alone=alone)._ensure(node, made, Span(0, 6))
    return made


async def test_what_no_peer_sends_comes_from_the_owners_source(
    autojump_clock: trio.testing.MockClock, lab: Lab, refilled: list[Any]
) -> None:
    made = await ensure(lab, "org/name@v1")
    assert refilled == [(made.revision, Span(0, 6), "org/name@v1")]
    assert trio.current_time() > 5, "peers were asked before"


async def test_without_a_swarm_the_source_is_first(autojump_clock: object, lab: Lab, refilled: list[Any]) -> None:
    began = trio.current_time()
    await ensure(lab, "folder", alone=True)
    assert len(refilled) == 1
    assert trio.current_time() - began < 1


async def test_peers_come_before_the_source(autojump_clock: object, lab: Lab, refilled: list[Any]) -> None:
    made = await ensure(lab, "folder", peers=True)
    assert refilled == []
    assert Store(lab.folder / "empty").missing(made, Span(0, 6)) == []


async def test_without_a_source_it_is_the_peers_fault(autojump_clock: object, lab: Lab, refilled: list[Any]) -> None:
    with pytest.raises(PeerUnavailable):
        await ensure(lab, "")
    assert refilled == []
