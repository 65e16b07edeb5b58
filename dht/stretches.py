"""Where a large swarm's nodes are filed: under stretches of layers, so that nobody's key holds everybody.

A model's layers are cut into stretches of 8, or of more where there would be over MAX_STRETCHES of them; a node is
filed under each stretch that its span touches, and who lacks layers asks for their stretches only. Pure: texts that
`dht.records` makes keys of, and nothing of who stores them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from paceline.wire.ids import Span
from paceline.wire.messages import Layer, RevisionBytes
from paceline.wire.offers import Offer, Service

LAYERS = 8
MAX_STRETCHES = 16
"""Of one model; so a node that holds all of a deep one is filed under no more."""

MAX_KEYS = 48
"""Keys of one node, of all its services together."""

CROWD = 256
"""Members beyond which a swarm is filed by stretches. Below, every view holds everybody, and a name is all one asks."""


class Want(Struct, frozen=True, array_like=True):
    """Offers of services that hold some of layers ``[start, end)`` of a revision."""

    revision: RevisionBytes
    start: Layer
    end: Layer

    def overlap(self, offer: Offer) -> int:
        """How many of the wanted layers the offer holds; 0 where it is of no use."""
        return max((self._overlap(service) for service in offer.services), default=0)

    def _overlap(self, service: Service) -> int:
        if service.revision != self.revision:
            return 0
        return max(0, min(self.end, service.end) - max(self.start, service.start))


def length(layers: int) -> int:
    """Layers of one stretch of a model with `layers` of them."""
    return max(LAYERS, -(-layers // MAX_STRETCHES))


def touched(layers: int, wanted: Iterable[int]) -> tuple[int, ...]:
    """Numbers of the stretches that hold the `wanted` layers, in order."""
    return tuple(sorted({layer // length(layers) for layer in wanted if 0 <= layer < layers}))


def span(layers: int, number: int) -> Span:
    """The layers of one stretch."""
    return Span(number * length(layers), min(layers, (number + 1) * length(layers)))


def text(revision: bytes, number: int) -> str:
    """What a stretch is called, for `records.model_key`. The first one's name does not depend on how many there are."""
    return f"{revision.hex()}/{number}"


def filed_under(services: Sequence[Service], *, crowd: bool) -> tuple[str, ...]:
    """Texts of a node's keys, at most MAX_KEYS. In a small swarm its models' names and revisions; in a crowd its
    stretches, and names and revisions only where it holds a model's first one: who knows a name only learns there which
    revisions and layers there are.
    """
    names: dict[str, None] = {}
    stretches: dict[str, None] = {}
    for it in services:
        numbers = touched(it.layers, range(it.start, it.end))
        if not crowd or 0 in numbers:
            names |= dict.fromkeys((it.model, it.revision.hex()))
        if crowd:
            stretches |= dict.fromkeys(text(it.revision, number) for number in numbers)
    return (*names, *stretches)[:MAX_KEYS]
