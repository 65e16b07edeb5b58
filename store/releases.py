"""Releases on this machine: signed, verified, trusted, and never older than what is known. Knows files and Ed25519.

::

    releases/<quoted name>/<sequence>-<publisher>    one encoded SignedRelease

The newest one for everybody decides what a name means here; a canary may run beside it. Refuses to know where a release
came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.store.trust import Trust
from paceline.wire.codec import Buffer, decode_header, encode_header
from paceline.wire.errors import ForgedManifest, InvalidRequest, Malformed, ReplayedRelease
from paceline.wire.ids import Revision
from paceline.wire.releases import Release, SignedRelease, standing

_DOMAIN = b"paceline/release/1\x00"
"""Prefixed to what is signed, so that a signature made for anything else never passes for a release."""

_CANARY_DOMAIN = b"paceline/release-canary/1\x00"
"""The same for a canary: who does not know of shares finds no valid signature, rather than a release for everybody."""


class Signer(Protocol):
    """A private key: `net.identity.Identity` in life."""

    @property
    def public(self) -> bytes: ...
    def sign(self, body: bytes) -> bytes: ...


def sign(signer: Signer, release: Release) -> SignedRelease:
    """The release as its publisher's statement. Raises ForgedManifest where it names another publisher."""
    if release.publisher != signer.public:
        raise ForgedManifest("a release can only be signed by the publisher it names")
    body = encode_header(release)
    return SignedRelease(body, signer.sign(_domain(release) + body))


def _domain(release: Release) -> bytes:
    return _DOMAIN if release.full else _CANARY_DOMAIN


@lru_cache(maxsize=4096)
def verify(signed: SignedRelease) -> Release:
    """The release inside, signed by the publisher it names. Raises Malformed, ForgedManifest."""
    release: Release = decode_header(signed.body, Release)
    try:
        Ed25519PublicKey.from_public_bytes(release.publisher).verify(signed.signature, _domain(release) + signed.body)
    except (InvalidSignature, ValueError) as error:
        raise ForgedManifest(f"the release of {release.name!r} is not signed by the publisher it names") from error
    return release


def decode(data: Buffer) -> SignedRelease:
    """Encoded bytes → SignedRelease. Raises Malformed."""
    signed: SignedRelease = decode_header(data, SignedRelease)
    return signed


class Releases:
    """The releases of one store. `trust` decides who is believed about which name."""

    def __init__(self, store: Store, trust: Trust) -> None:
        self.trust = trust
        self._store = store
        self._root = store.root / "releases"

    def take(self, signed: SignedRelease) -> bool:
        """Believe a release, if it is newer than what is known of its name. False for one that is known already.

        A release for everybody is measured against the newest of its kind, since the one that a running canary stands
        beside may be heard of later; a canary against all. Raises Malformed, ForgedManifest, UnauthorisedPublisher;
        ReplayedRelease for an older one.
        """
        release = verify(signed)
        self.trust.check(release)
        of_name = [verify(it) for it in self._of(release.name)]
        full, _ = standing(of_name)
        known = full if release.full else max(of_name, key=lambda it: it.rank, default=None)
        if known == release:
            return False
        if known is not None and release.rank < known.rank:
            raise ReplayedRelease(
                f"release {release.sequence} of {release.name!r} is older than release {known.sequence}, "
                "which is known here"
            )
        return self._write(release, signed)

    def publish(self, signer: Signer, manifest: Manifest, now: float, share: float = 1.0) -> SignedRelease:
        """The next release of the manifest's name, signed and stored; the same as the newest one changes nothing.

        `share` below 1: as a canary, beside the newest full release. Raises UnauthorisedPublisher where `trust` does
        not let this signer publish to the name; InvalidRequest for a canary with nothing to stand beside.
        """
        while True:
            newest = self.newest(manifest.name)
            before = verify(newest) if newest is not None else None
            same = before is not None and (before.revision, before.share) == (manifest.revision, share)
            if newest is not None and same:
                return newest
            if share < 1.0:
                self._check_canary(manifest)
            release = Release(
                name=manifest.name,
                revision=manifest.revision,
                sequence=before.sequence + 1 if before else 1,
                publisher=signer.public,
                parent=before.revision if before else None,
                published_at=float(int(now)),
                share=share,
            )
            self.trust.check(release)
            signed = sign(signer, release)
            if self._write(release, signed):
                return signed

    def _check_canary(self, manifest: Manifest) -> None:
        full, _ = self.standing(manifest.name)
        if full is None:
            raise InvalidRequest(
                f"{manifest.name!r} has no release that a canary could run beside",
                cure="publish the first one for everybody",
            )
        if full.revision == manifest.revision:
            raise InvalidRequest(
                f"revision {manifest.revision.hex()[:12]} of {manifest.name!r} is for everybody already",
                cure="to go back, publish the older revision",
            )

    def standing(self, name: str) -> tuple[Release | None, Release | None]:
        """``(full, canary)``: the newest trusted release for everybody, and the canary that runs beside it."""
        return standing(verify(it) for it in self._of(name))

    def newest(self, name: str) -> SignedRelease | None:
        """The newest trusted release of a name, a canary or not."""
        return max(self._of(name), key=lambda signed: verify(signed).rank, default=None)

    def history(self, name: str) -> list[SignedRelease]:
        """All trusted releases of a name that are kept here, oldest first."""
        return sorted(self._of(name), key=lambda signed: verify(signed).rank)

    def naming(self, revision: Revision) -> SignedRelease | None:
        """The newest trusted release that names a revision, whatever its model's name."""
        found = [signed for name in self.names() for signed in self._of(name) if verify(signed).revision == revision]
        return max(found, key=lambda signed: verify(signed).rank, default=None)

    def names(self) -> list[str]:
        """Every name that has a trusted release here."""
        folders = sorted(self._root.iterdir()) if self._root.exists() else []
        return sorted({verify(signed).name for folder in folders for signed in self._in(folder)})

    def resolve(self, which: str) -> Revision | None:
        """A name's newest revision for everybody, or the revision of this hexadecimal; None where no trusted publisher
        names it.
        """
        full, _ = self.standing(which)
        if full is not None:
            return Revision(full.revision)
        try:
            revision = Revision(bytes.fromhex(which))
        except ValueError:
            return None
        return revision if self.trust.builtin(revision) or self.naming(revision) is not None else None

    # --- files

    def _folder(self, name: str) -> Path:
        return self._root / (quote(name, safe="").replace(".", "%2E") or "%00")

    def _of(self, name: str) -> Iterator[SignedRelease]:
        yield from self._in(self._folder(name))

    def _in(self, folder: Path) -> Iterator[SignedRelease]:
        """What lies there and may be believed: a file that somebody tampered with counts as absent."""
        for path in sorted(folder.iterdir()) if folder.exists() else ():
            try:
                signed = decode(path.read_bytes())
                release = verify(signed)
            except (Malformed, ForgedManifest, OSError):
                continue
            if self.trust.allows(release) and self._folder(release.name) == folder:
                yield signed

    def _write(self, release: Release, signed: SignedRelease) -> bool:
        """False where another process has released the same sequence meanwhile."""
        path = self._folder(release.name) / f"{release.sequence:015d}-{release.publisher.hex()[:16]}"
        return self._store.write_new(path, encode_header(signed))


def encode(signed: SignedRelease) -> bytes:
    """The inverse of `decode`."""
    return encode_header(signed)


def adopt_local(releases: Releases, store: Store, which: str, signer: Signer, now: float) -> None:
    """Sign what this machine itself has named `which` and nobody has released: what was made here is trusted here.

    Only making a model here gives it a name in the store; what comes from peers is named by releases alone.
    """
    if releases.newest(which) is not None or releases.resolve(which) is not None:
        return
    if (named := store.named(which)) is not None:
        releases.publish(signer, store.manifest(named), now)
