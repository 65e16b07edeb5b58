"""Which piece of which block is asked of whom: rarest block first, liars found out, nothing asked for twice.

Pure: peers, blocks and pieces in, decisions out. Knows no file, no link, no clock. A peer goes on with the block it has
begun; one that has none left to begin helps with another's. So most blocks come from one peer, and a bad one names its
liar. Where several contributed to a bad block it is fetched again from one peer alone, and who sent other bytes than
the good ones is banned (`FetchPlan.blame`). Between `judge` and its verdict a block stands still: nobody is asked for
it and nobody's part in it is taken back, so the verdict is about the bytes of those who are named for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from paceline.store.manifest import Block
from paceline.wire.ids import PeerId


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes ``[offset, offset + length)`` of a block; `index` counts pieces."""

    block: Block
    index: int
    offset: int
    length: int


@dataclass(slots=True)
class _Job:
    """One block that is not here yet."""

    block: Block
    pieces: int
    wanted: list[int]
    """Pieces that nobody has been asked for, last first."""
    asked: dict[int, PeerId] = field(default_factory=dict)
    sender: dict[int, PeerId] = field(default_factory=dict)
    """Who sent each piece that has landed; those of a process before this one are nobody's."""
    landed: int = 0
    sole: bool = False
    """From one peer alone, because pieces of several did not fit together."""
    judged: bool = False
    """Its hash is being computed, elsewhere and for a while."""
    suspects: dict[int, tuple[PeerId, bytes]] = field(default_factory=dict)
    """What each peer sent for a block that turned out bad, by piece: a digest."""

    @property
    def working(self) -> set[PeerId]:
        return {*self.asked.values(), *(self.sender.values() if self.sole else ())}

    @property
    def complete(self) -> bool:
        return self.landed == self.pieces


class FetchPlan:
    """`landed`: pieces of a block that an earlier process has brought. With nothing wanting it is `ready` at once."""

    def __init__(self, blocks: Iterable[Block], piece_bytes: int, landed: Mapping[str, set[int]]) -> None:
        self.piece_bytes = piece_bytes
        self.banned: set[PeerId] = set()
        self._jobs: dict[str, _Job] = {}
        self._holds: dict[PeerId, set[str]] = {}
        for block in blocks:
            pieces = max(1, -(-block.size // piece_bytes))
            here = landed.get(block.hash, set())
            wanted = [at for at in reversed(range(pieces)) if at not in here]
            self._jobs[block.hash] = _Job(block, pieces, wanted, landed=pieces - len(wanted))

    @property
    def blocks(self) -> list[Block]:
        """What is still missing."""
        return [job.block for job in self._jobs.values()]

    def ready(self) -> list[Block]:
        """Blocks whose pieces have all landed, and that are not being verified."""
        return [job.block for job in self._jobs.values() if job.complete and not job.judged]

    def unavailable(self) -> list[Block]:
        """Blocks that no known peer holds."""
        held: set[str] = set().union(*self._holds.values()) if self._holds else set()
        return [job.block for key, job in self._jobs.items() if key not in held and not job.complete]

    # --- peers

    def holds(self, peer: PeerId, hashes: Iterable[str]) -> None:
        """A peer says what it holds, as far as it is asked for here."""
        if peer not in self.banned:
            self._holds[peer] = set(hashes)

    def lacks(self, peer: PeerId, block: Block) -> None:
        """A peer does not hold a block after all; what it was asked of it is free again."""
        self._holds.get(peer, set()).discard(block.hash)
        if (job := self._jobs.get(block.hash)) is not None:
            self._free(job, peer)

    def gone(self, peer: PeerId) -> None:
        """A peer is silent or away: whatever it was asked for is free again, what it sent stays."""
        self._holds.pop(peer, None)
        for job in self._jobs.values():
            self._free(job, peer)

    def _free(self, job: _Job, peer: PeerId) -> None:
        if job.judged:
            return
        pieces = [at for at, asked in job.asked.items() if asked == peer]
        for at in pieces:
            del job.asked[at]
        if job.sole and peer in (*job.sender.values(), *((peer,) if pieces else ())):
            self._restart(job)
        else:
            job.wanted = sorted((*job.wanted, *pieces), reverse=True)

    # --- pieces

    def next(self, peer: PeerId) -> Piece | None:
        """What to ask of `peer` now; None where it can do nothing more at the moment."""
        held = self._holds.get(peer, set())
        open_jobs = [job for key, job in self._jobs.items() if key in held and job.wanted and self._may(job, peer)]
        if not open_jobs:
            return None
        job = min(open_jobs, key=lambda job: self._order(job, peer))
        at = job.wanted.pop()
        job.asked[at] = peer
        offset = at * self.piece_bytes
        return Piece(job.block, at, offset, min(self.piece_bytes, job.block.size - offset))

    def _may(self, job: _Job, peer: PeerId) -> bool:
        return not job.sole or job.working <= {peer}

    def _order(self, job: _Job, peer: PeerId) -> tuple[int, int, str]:
        """Mine first, then what nobody works on, the rarest first, then what others work on. Ties by hash."""
        working = job.working | set(job.sender.values())
        place = 0 if peer in working else 1 if not working else 2
        return place, sum(job.block.hash in held for held in self._holds.values()), job.block.hash

    def arrived(self, peer: PeerId, piece: Piece) -> bool:
        """A piece has come. False where it was not asked of this peer (any more): it is not written then."""
        job = self._jobs.get(piece.block.hash)
        if job is None or job.asked.get(piece.index) != peer:
            return False
        del job.asked[piece.index]
        job.sender[piece.index] = peer
        job.landed += 1
        return True

    def in_flight(self, peer: PeerId) -> int:
        """Pieces asked of a peer and not come yet."""
        return sum(asked == peer for job in self._jobs.values() for asked in job.asked.values())

    # --- verdicts

    def judge(self, block: Block) -> bool:
        """Begin to verify a block; `bad` or `good` ends that. False where there is nothing to verify: it is in the
        store, or has been opened again since it was complete, because who sent a part of it was banned or left.
        """
        job = self._jobs.get(block.hash)
        if job is None or not job.complete or job.judged:
            return False
        job.judged = True
        return True

    def senders(self, block: Block) -> set[PeerId]:
        """Who contributed to a block."""
        return set(self._jobs[block.hash].sender.values())

    def bad(self, block: Block, digests: Mapping[int, bytes]) -> set[PeerId]:
        """A block under `judge` has the wrong hash: who is banned for it now. It is fetched again from its beginning.

        `digests`: of the pieces as they lie. Pieces of an earlier process are nobody's: then nobody can be blamed yet.
        """
        job = self._jobs[block.hash]
        assert job.judged, "a verdict on bytes that may have changed would name the wrong peer"
        job.judged = False
        senders = set(job.sender.values())
        own = len(job.sender) == job.pieces
        if own and len(senders) == 1:
            self.ban(senders)
            self._restart(job)
            return senders
        job.suspects |= {at: (peer, digests[at]) for at, peer in job.sender.items() if at in digests}
        self._restart(job)
        job.sole = True
        return set()

    def blame(self, block: Block, digests: Mapping[int, bytes]) -> set[PeerId]:
        """The block is good now: who had sent something else for it before."""
        suspects = self._jobs[block.hash].suspects
        liars = {peer for at, (peer, digest) in suspects.items() if digests.get(at, digest) != digest}
        self.ban(liars)
        return liars

    def suspects(self, block: Block) -> set[int]:
        """Pieces whose senders are still to be judged."""
        return set(self._jobs[block.hash].suspects)

    def good(self, block: Block) -> None:
        """The block is in the store."""
        del self._jobs[block.hash]

    def ban(self, peers: Iterable[PeerId]) -> None:
        """Never ask these again. What they sent is thrown away with them, except of a block under `judge`."""
        for peer in list(peers):
            self.banned.add(peer)
            self.gone(peer)
            for job in self._jobs.values():
                if job.judged:
                    continue
                tainted = [at for at, sender in job.sender.items() if sender == peer]
                for at in tainted:
                    del job.sender[at]
                job.landed -= len(tainted)
                job.wanted = sorted((*job.wanted, *tainted), reverse=True)

    def _restart(self, job: _Job) -> None:
        job.asked.clear()
        job.sender.clear()
        job.landed = 0
        job.wanted = list(reversed(range(job.pieces)))
