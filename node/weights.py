"""What a node may load, what it lacks of it, and how it comes by that: releases, manifests and blocks from the swarm.

Knows trust, the store and the fetcher. Nothing is loaded that no trusted publisher has released (or that the program
itself names by its hash), nothing is used or served that has not been verified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import trio

from paceline.consistency.revisions import Frontier
from paceline.node.weights_fetch import Fetcher, FetchReport
from paceline.store.manifest import MAX_MANIFEST_BYTES, Block, Manifest, decode
from paceline.store.releases import Releases, Signer, adopt_local, verify
from paceline.store.store import Store
from paceline.wire.errors import (
    CorruptBlock,
    ForgedManifest,
    ModelNotFound,
    PacelineError,
    PeerUnavailable,
    UnauthorisedPublisher,
)
from paceline.wire.ids import PeerId, Revision, Span
from paceline.wire.limits import MAX_FRONTIER
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Offer
from paceline.wire.releases import Release, SignedRelease

Offers = Callable[[], Awaitable[Sequence[Offer]]]
Report = Callable[[str, int, int], None]
"""``(what, done, total)``."""

REFUSED_S = 5.0
"""After something was refused: how long an honest peer may take to show up before the refusal is the answer."""


class Weights:
    """`offers`: everything live in the swarm. `signer`: this machine's publisher. `now`: unix seconds."""

    def __init__(
        self,
        store: Store,
        releases: Releases,
        signer: Signer,
        now: Callable[[], float],
        me: Callable[[], str] = lambda: "",
    ) -> None:
        self.store = store
        self.releases = releases
        self.refused: Counter[str] = Counter()
        """Releases that came by gossip and were not believed, by the error's code."""
        self.stale: dict[str, int] = {}
        """Peers that are behind, by releases, as of the last look."""
        self._signer = signer
        self._now = now
        self._me = me
        self._why: PacelineError | None = None
        self._judged: dict[SignedRelease, bool] = {}

    # --- what may be loaded

    def local(self, which: str) -> Revision | None:
        """The revision that `which` (a name or a revision) means here, by a trusted publisher or the program."""
        adopt_local(self.releases, self.store, which, self._signer, self._now())
        return self.releases.resolve(which)

    def absorb(self, offers: Iterable[Offer]) -> list[Release]:
        """Take in what nodes know of the newest releases; what is news here. What may not be believed is counted."""
        news = []
        offers = list(offers)
        self.stale = self._stale(offers)
        for signed in {signed for offer in offers for signed in offer.frontier}:
            if signed in self._judged:
                continue
            try:
                if self.releases.take(signed):
                    news.append(verify(signed))
            except PacelineError as error:
                self.refused[error.code] += 1
                self._why = error if isinstance(error, UnauthorisedPublisher | ForgedManifest) else self._why
            if len(self._judged) >= 1024:
                self._judged.clear()
            self._judged[signed] = True
        return news

    def _stale(self, offers: Sequence[Offer]) -> dict[str, int]:
        """Peers that serve only revisions behind the newest known here, with how many releases they are behind."""
        found: dict[str, int] = {}
        names = {service.model for offer in offers for service in offer.services}
        known = {name: self.known(name) for name in names}
        for offer in offers:
            for name in {service.model for service in offer.services}:
                behind = [known[name].behind(it.revision) for it in offer.services if it.model == name]
                lag = min((it for it in behind if it is not None), default=0)
                if lag:
                    found[offer.peer] = max(lag, found.get(offer.peer, 0))
        return found

    def known(self, name: str) -> Frontier:
        """The frontier of a name, as far as it is known and believed here."""
        return Frontier.of(map(verify, self.releases.history(name)))

    def frontier(self, served: Iterable[tuple[str, Revision]]) -> tuple[SignedRelease, ...]:
        """For this node's own offer: the newest release of each name, the newest for everybody where that is another,
        and what names the revisions that it serves.
        """
        served = list(dict.fromkeys(served))
        found = [self.releases.newest(name) for name, _ in served]
        full = [self.releases.resolve(name) for name, _ in served]
        found += [self.releases.naming(revision) for revision in full if revision is not None]
        found += [self.releases.naming(revision) for _, revision in served]
        return tuple(dict.fromkeys(it for it in found if it is not None))[:MAX_FRONTIER]

    async def revision(self, which: str, offers: Offers, patience_s: float = 15.0) -> Revision:
        """As `local`, else what the swarm says. Raises UnauthorisedPublisher, ForgedManifest, ModelNotFound."""
        deadline = trio.current_time() + patience_s
        while True:
            self.absorb(await offers())
            found = self.local(which)
            if found is not None:
                return found
            if self._why is not None:
                deadline = min(deadline, trio.current_time() + REFUSED_S)
            if trio.current_time() >= deadline:
                break
            await trio.sleep(0.2)
        if self._why is not None:
            raise self._why
        await self._raise_if_unsigned(which, await offers())
        raise ModelNotFound(
            f"no trusted publisher has released {which!r}", cure="see `paceline trust` and `paceline pull`"
        )

    async def _raise_if_unsigned(self, which: str, offers: Sequence[Offer]) -> None:
        served = {
            it.revision.hex() for offer in offers for it in offer.services if which in (it.model, it.revision.hex())
        }
        if served:
            raise UnauthorisedPublisher(
                f"{which!r} is served as revision {min(served)[:12]}, which no publisher trusted here has signed",
                cure="trust its publisher: paceline trust KEY",
            )

    # --- what is lacking

    def missing(self, manifest: Manifest, span: Span) -> list[Block]:
        """Blocks that serving the span needs and that are not here."""
        return self.store.missing(manifest, span)

    async def manifest(
        self, revision: Revision, fetcher: Fetcher, offers: Offers, patience_s: float = 20.0
    ) -> Manifest:
        """From the store, else from whoever has it. Raises PeerUnavailable; a liar is passed over and banned.

        From here on the revision stays in the store, until it is served no more or this process ends.
        """
        self.store.lease.hold(revision)
        try:
            return self.store.manifest(revision)
        except ModelNotFound:
            pass
        deadline = trio.current_time() + patience_s
        while trio.current_time() < deadline:
            for at in _addresses(await offers(), self._me(), revision):
                try:
                    data = await fetcher.small(at, revision, MAX_MANIFEST_BYTES)
                except CorruptBlock as error:
                    fetcher.banned.add(PeerId(at.peer))
                    self.refused[ForgedManifest.code] += 1
                    self._why = ForgedManifest(
                        f"not the manifest of {revision.hex()[:12]}: {error.message}", peer=at.peer
                    )
                    deadline = min(deadline, trio.current_time() + REFUSED_S)
                    continue
                except PacelineError:
                    continue
                manifest = decode(data)
                self.store.put_manifest(manifest, name=False)
                return manifest
            await trio.sleep(0.2)
        raise self._why or PeerUnavailable(f"nobody has sent the manifest of {revision.hex()[:12]}")

    async def ensure(
        self, manifest: Manifest, span: Span, fetcher: Fetcher, offers: Offers, report: Report
    ) -> FetchReport:
        """All that serving `span` needs, into the store, and nothing else. Raises PeerUnavailable, QuotaReached,
        DiskFull.
        """

        async def sources() -> list[PeerAddress]:
            return _addresses(await offers(), self._me(), manifest.revision)

        return await fetcher.fetch(self.missing(manifest, span), sources, partial(report, "fetch"))


def _addresses(offers: Sequence[Offer], me: str, revision: bytes) -> list[PeerAddress]:
    """Everybody but oneself, first those who serve this revision."""
    others = [offer for offer in offers if offer.peer != me and (offer.at.control or offer.at.data)]
    others.sort(key=lambda offer: all(service.revision != revision for service in offer.services))
    return [offer.at for offer in others]
