"""What may go from a store, and in which order, so that it keeps to its quota. Pure: no file, no clock.

First what no revision here names and no living process has claimed; then whole revisions, those used longest ago
first. A revision that is kept for a reason stays, and everything that it names with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Resident:
    """A revision whose manifest is here. `blocks`: hashes of all that it names. `kept`: why it has to stay, or ""."""

    revision: str
    blocks: frozenset[str]
    used_at: float
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """A store at one moment. `sizes`: bytes on the disk of each block, whole or in part. `claimed`: blocks that living
    processes write or wait for, with the sizes that they will have.
    """

    sizes: Mapping[str, int]
    residents: tuple[Resident, ...] = ()
    claimed: Mapping[str, int] = field(default_factory=dict)

    def used(self) -> int:
        """Bytes taken, those promised to claims included."""
        return sum(max(self.sizes.get(it, 0), self.claimed.get(it, 0)) for it in {*self.sizes, *self.claimed})


@dataclass(frozen=True, slots=True)
class Decision:
    """What to remove. `used`: bytes taken then; `over`: by how much that is over the quota, all the same."""

    revisions: tuple[str, ...]
    blocks: frozenset[str]
    used: int
    over: int


def decide(contents: Contents, quota: int | None, *, evict: bool = True) -> Decision:
    """`quota` None: only what nobody names goes. `evict` False: no revision goes, whatever the quota says."""
    stays = Counter(block for it in contents.residents for block in it.blocks)
    sizes = dict(contents.sizes)
    loose = {block for block in sizes if not stays[block] and block not in contents.claimed}
    used = contents.used() - sum(sizes[block] for block in loose)
    gone: list[Resident] = []
    if quota is not None and evict:
        waiting = sorted((it for it in contents.residents if not it.kept), key=lambda it: (it.used_at, it.revision))
        for resident in waiting:
            if used <= quota:
                break
            gone.append(resident)
            stays.subtract(resident.blocks)
            used -= _freed(contents, resident, stays)
        _spare(contents, gone, stays)
    freed = {block for it in gone for block in it.blocks if block in sizes and not stays[block]}
    blocks = frozenset(loose | {block for block in freed if block not in contents.claimed})
    over = 0 if quota is None else max(0, used - quota)
    return Decision(tuple(it.revision for it in gone), blocks, used, over)


def _freed(contents: Contents, gone: Resident, stays: Counter[str]) -> int:
    """Bytes that nobody needs once `gone` is."""
    return sum(
        contents.sizes.get(block, 0) for block in gone.blocks if not stays[block] and block not in contents.claimed
    )


def _spare(contents: Contents, gone: list[Resident], stays: Counter[str]) -> None:
    """Revisions whose leaving frees nothing, because others share all that is here of them, may as well stay."""
    for resident in reversed(list(gone)):
        if _freed(contents, resident, stays) == 0:
            gone.remove(resident)
            stays.update(resident.blocks)


def shares(contents: Contents) -> dict[str, tuple[int, int]]:
    """``(own, shared)`` bytes on the disk of each revision: those of blocks that no other names, and the others."""
    named = Counter(block for it in contents.residents for block in it.blocks)
    found = {}
    for it in contents.residents:
        here = [block for block in it.blocks if block in contents.sizes]
        own = sum(contents.sizes[block] for block in here if named[block] == 1)
        found[it.revision] = own, sum(contents.sizes[block] for block in here) - own
    return found
