"""Which riders have computed which beginnings: a hint, from which routing expects a shorter prefill. No promise.

Knows tokens by their digests, riders and a clock. Refuses to know whether a node still has what it computed: nodes
forget by themselves, and then compute again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

from paceline.routing.prefixes import Knows
from paceline.wire.ids import Span
from paceline.wire.messages import Stage

BLOCK = 32
"""Positions: what nodes keep (docs/adr/0014-prefixes.md)."""

EXPIRES_S = 900.0
MOST_BLOCKS = 16_384
"""About 100 bytes each; the longest unused go first."""

RINGS = 2
"""Of one beginning: the latest that computed it. And so many are told of a prompt."""

Riders = tuple[tuple[str, Span], ...]


class Prefixes:
    """One client's. `now` in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._blocks: dict[bytes, dict[Riders, float]] = {}
        """By the digest of a beginning: who computed it, and when. In the order of use."""

    def note(self, revision: bytes, tokens: Sequence[int], route: Sequence[Stage]) -> None:
        """These riders have computed `tokens`, each over its own layers."""
        riders = tuple((stage.at.peer, Span(stage.start, stage.end)) for stage in route)
        for digest in _chain(revision, tokens):
            rings = self._blocks.pop(digest, {})
            rings.pop(riders, None)
            rings[riders] = self._now()
            if len(rings) > RINGS:
                del rings[next(iter(rings))]
            self._blocks[digest] = rings
        while len(self._blocks) > MOST_BLOCKS:
            del self._blocks[next(iter(self._blocks))]

    def rings(self, revision: bytes, tokens: Sequence[int]) -> list[tuple[Knows, ...]]:
        """The `RINGS` rings that have computed the longest beginnings of `tokens`, with how much of it."""
        since = self._now() - EXPIRES_S
        longest: dict[Riders, int] = {}
        for count, digest in enumerate(_chain(revision, tokens), 1):
            rings = self._blocks.pop(digest, None)
            if rings is None:
                break
            self._blocks[digest] = rings
            longest |= {riders: count * BLOCK for riders, at in rings.items() if at >= since}
        best = sorted(longest.items(), key=lambda it: -it[1])[:RINGS]
        return [tuple(Knows(peer, span, positions) for peer, span in riders) for riders, positions in best]


def _chain(revision: bytes, tokens: Sequence[int]) -> Iterator[bytes]:
    """Digests of the beginnings of whole blocks, shortest first."""
    digest = sha256(revision).digest()
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        block = b"".join(token.to_bytes(4, "big") for token in tokens[start : start + BLOCK])
        digest = sha256(digest + block).digest()
        yield digest
