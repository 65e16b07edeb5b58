"""What one simulated run is made of, drawn from its seed: the swarm, the session, the weather and the mishaps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from paceline.sim.chance import Chance
from paceline.sim.reference import LAYERS, OTHER_REVISION, POOL, REVISION
from paceline.sim.rider import Tile
from paceline.wire.ids import PeerId

KINDS = (
    "crash",
    "crash",
    "blink",
    "partition",
    "partition",
    "pause",
    "migrate",
    "second owner",
    "owner dies",
    "impostor",
    "meddler",
    "cancel",
)


@dataclass(frozen=True)
class Weather:
    """Of every message: probabilities, and delays in seconds. `fifo`: links keep their order, as real ones do."""

    loss: float = 0.0
    copy: float = 0.0
    spike: float = 0.0
    delay_s: float = 0.01
    fifo: bool = True


CALM = Weather()


@dataclass(frozen=True)
class Mishap:
    """Something that happens after `at` events."""

    at: int
    kind: str


@dataclass(frozen=True)
class Scenario:
    """See the module's docstring. `strict`: nodes look at messages between engine steps only, as the real ones do."""

    reference: int
    nodes: tuple[tuple[PeerId, bytes], ...]
    tilings: tuple[tuple[Tile, ...], ...]
    journal: int
    chunk: int
    shadows: float
    retile: float
    strict: bool
    step_s: float
    slow: PeerId | None
    weather: Weather
    mishaps: tuple[Mishap, ...]
    heal_after: int
    """Events after which all is well again."""

    @property
    def honest(self) -> bool:
        """True where everybody keeps to the protocol."""
        return not {mishap.kind for mishap in self.mishaps} & {"impostor", "meddler"}

    @property
    def lossless(self) -> bool:
        """True where messages are lost only with the link they are on: then nothing may be left behind."""
        kinds = {mishap.kind for mishap in self.mishaps}
        if self.weather.loss or kinds & {"partition", "pause", "owner dies", "impostor"}:
            return False
        return self.weather.fifo or not kinds & {"crash", "blink"}


def draw(chance: Chance) -> Scenario:
    """One run's scenario."""
    nodes = [PeerId(f"n{k}") for k in range(3 + chance.below(5))]
    tilings = tuple(_tiling(chance, nodes) for _ in range(2))
    # A candidate more, of another revision: who chooses it is refused.
    strange = PeerId("other")
    revisions = [(peer, bytes(REVISION)) for peer in nodes]
    if chance.yes(0.15):
        revisions.append((strange, bytes(OTHER_REVISION)))
        tilings = tuple(_with_stranger(tiles, chance.below(len(tiles)), strange) for tiles in tilings)
    harsh = chance.unit()
    weather = Weather(
        loss=0.0 if harsh < 0.45 else chance.between(0.005, 0.05) if harsh < 0.85 else 0.2,
        copy=0.0 if chance.yes(0.5) else chance.between(0.02, 0.3),
        spike=0.0 if chance.yes(0.5) else chance.between(0.01, 0.1),
        delay_s=chance.pick((0.001, 0.01, 0.05)),
        fifo=chance.yes(0.5),
    )
    mishaps = [Mishap(chance.below(120), chance.pick(KINDS)) for _ in range(chance.below(5))]
    return Scenario(
        reference=chance.below(POOL),
        nodes=tuple(revisions),
        tilings=tilings,
        journal=chance.pick((0, 64, 320, 1 << 20, 1 << 20)),
        chunk=chance.pick((1, 2, 3, 512)),
        shadows=0.0 if chance.yes(0.5) else 0.7,
        retile=0.15 if chance.yes(0.2) else 0.0,
        strict=chance.yes(0.4),
        step_s=chance.pick((0.0, 0.002, 0.02)),
        slow=chance.pick(nodes) if chance.yes(0.15) else None,
        weather=weather,
        mishaps=tuple(sorted(mishaps, key=lambda mishap: mishap.at)),
        heal_after=60 + chance.below(300),
    )


def _tiling(chance: Chance, nodes: list[PeerId]) -> tuple[Tile, ...]:
    """A cut of the layers into one to four tiles, with one to three candidates each."""
    cuts = sorted({1 + chance.below(LAYERS - 1) for _ in range(chance.pick((0, 1, 1, 2, 2, 2, 3)))})
    edges = [0, *cuts, LAYERS]
    return tuple(
        Tile(start, end, tuple(sorted({chance.pick(nodes) for _ in range(1 + chance.below(3))})))
        for start, end in pairwise(edges)
    )


def _with_stranger(tiles: tuple[Tile, ...], at: int, stranger: PeerId) -> tuple[Tile, ...]:
    mixed = list(tiles)
    mixed[at] = Tile(tiles[at].start, tiles[at].end, (*tiles[at].candidates, stranger))
    return tuple(mixed)
