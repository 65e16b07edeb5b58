"""Takes from a store what may go (`store.room` decides): for a command, or to make room for blocks that are to come.

Everything happens alone in the gate, after all leases were read. A revision goes in this order: its name, its manifest,
its blocks. A crash in between leaves a store in which nothing that is kept lacks anything, and some blocks that nobody
names any more, which go the next time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from paceline.store.disk import CURE, alone, disk_errors, sync_folder
from paceline.store.errors import DiskFull, InUse, QuotaReached
from paceline.store.leases import Claims, Lease, living
from paceline.store.manifest import Manifest, decode
from paceline.store.room import Contents, Decision, Resident, decide
from paceline.wire.errors import Malformed, ModelNotFound

PINNED, NAMED_HERE, IN_USE = "pinned", "made here", "in use"


@dataclass(frozen=True, slots=True)
class Survey:
    """`contents` for the policy; the rest for people. `users`: a process for each revision that is in use. `named`:
    revisions that this machine gave a name.
    """

    contents: Contents
    manifests: Mapping[str, Manifest]
    users: Mapping[str, int]
    pinned: frozenset[str]
    named: frozenset[str]


def survey(root: Path) -> Survey:
    """What is here and who needs it. Raises StoreError."""
    with disk_errors(root), alone(root):
        return _survey(root, living(root))


def collect(root: Path, quota: int | None, *, dry: bool = False) -> Decision:
    """Remove what nobody names, and with a quota as many whole revisions as it takes. `dry`: only say what would go."""
    with disk_errors(root), alone(root):
        decision = decide(_survey(root, living(root)).contents, quota)
        if not dry:
            _perform(root, decision)
        return decision


def remove(root: Path, revision: str) -> Decision:
    """One revision, whatever its age. Raises ModelNotFound, InUse where a process serves it or it is pinned."""
    with disk_errors(root), alone(root):
        found = _survey(root, living(root))
        resident = next((it for it in found.contents.residents if it.revision == revision), None)
        if resident is None:
            raise ModelNotFound(f"revision {revision[:12]} is not in {root}", cure="see: paceline models")
        if resident.kept == IN_USE:
            user = found.users.get(revision, 0)
            raise InUse(f"revision {revision[:12]} is in use by process {user}", cure="end that process first")
        if resident.kept == PINNED:
            raise InUse(f"revision {revision[:12]} is pinned", cure=f"first: paceline models unpin {revision[:12]}")
        others = tuple(it for it in found.contents.residents if it is not resident)
        rest = decide(Contents(found.contents.sizes, others, found.contents.claimed), None)
        decision = Decision((revision,), rest.blocks, rest.used, 0)
        _perform(root, decision)
        return decision


def make_room(
    root: Path, lease: Lease, blocks: Mapping[str, int], quota_bytes: int, free: Callable[[], int] | None = None
) -> int:
    """Claim blocks that are to come (sizes by hash), after making room for them; the number of the claim.

    `quota_bytes` 0: no quota, and then no revision goes for it. `free`: bytes that the disk has left. Raises
    QuotaReached, DiskFull where there will not be enough; nothing is removed then.
    """
    with disk_errors(root), alone(root):
        found = _survey(root, living(root)).contents
        lacking = sum(max(0, size - found.sizes.get(it, 0)) for it, size in blocks.items() if it not in found.claimed)
        wanted = Contents(found.sizes, found.residents, {**found.claimed, **blocks})
        on_disk = sum(found.sizes.values()) + (_free(root) if free is None else free())
        quota = min(quota_bytes or on_disk, on_disk)
        if wanted.used() > quota and lacking:
            decision = decide(wanted, quota, evict=bool(quota_bytes))
            if decision.over:
                raise _too_little(root, decision, quota_bytes, lacking)
            _perform(root, decision)
        return lease.claim(blocks, gate=False)


def _too_little(root: Path, decision: Decision, quota_bytes: int, lacking: int) -> DiskFull | QuotaReached:
    short = f"{lacking / 1e9:.2f} GB more are needed, {decision.over / 1e9:.2f} GB of them do not fit into"
    if quota_bytes and decision.used > quota_bytes:
        quota = f"the quota of {quota_bytes / 1e9:.2f} GB: what is left is pinned, in use, or made here"
        return QuotaReached(
            f"{short} {quota}", cure="raise --store-gb; or see: paceline models, paceline models remove"
        )
    return DiskFull(f"{short} {root}", cure=CURE)


def _free(root: Path) -> int:
    seen = os.statvfs(root)
    return seen.f_bavail * seen.f_frsize


# --- looking


def _survey(root: Path, claims: Claims) -> Survey:
    manifests = dict(_manifests(root))
    pinned = frozenset(_files(root / "pins"))
    named = frozenset((root / "names" / name).read_text().strip() for name in _files(root / "names"))
    used = {name: (root / "used" / name).stat().st_mtime for name in _files(root / "used")}
    residents = []
    for revision, manifest in manifests.items():
        reasons = {IN_USE: revision in claims.revisions or claims.unclear, PINNED: revision in pinned}
        reasons[NAMED_HERE] = revision in named
        kept = next((reason for reason, holds in reasons.items() if holds), "")
        at = used.get(revision, (root / "manifests" / revision).stat().st_mtime)
        residents.append(Resident(revision, frozenset(_names(manifest)), at, kept))
    sizes = _sizes(root)
    claimed = dict.fromkeys(sizes, 0) | claims.blocks if claims.unclear else claims.blocks
    return Survey(Contents(sizes, tuple(residents), claimed), manifests, claims.revisions, pinned, named)


def _manifests(root: Path) -> list[tuple[str, Manifest]]:
    """Those that can be read; a damaged one names nothing, and nothing could be made of it."""
    found = []
    for name in _files(root / "manifests"):
        with suppress(Malformed):
            found.append((name, decode((root / "manifests" / name).read_bytes())))
    return found


def _names(manifest: Manifest) -> set[str]:
    return {block.hash for block in (*manifest.blocks(), *manifest.texts())}


def _sizes(root: Path) -> dict[str, int]:
    """Bytes on the disk by block; of those under way what has landed of them, maps not counted."""
    sizes: dict[str, int] = {}
    for name in _files(root / "partial"):
        with suppress(FileNotFoundError):  # completed meanwhile
            seen = (root / "partial" / name).stat()
            sizes[name[:64]] = max(
                sizes.get(name[:64], 0), 0 if "." in name else min(seen.st_size, seen.st_blocks * 512)
            )
    for name in _files(root / "blocks"):
        sizes[name] = (root / "blocks" / name).stat().st_size
    return sizes


def _files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


# --- taking away


def _perform(root: Path, decision: Decision) -> None:
    gone = set(decision.revisions)
    for name in _files(root / "names"):
        if (root / "names" / name).read_text().strip() in gone:
            (root / "names" / name).unlink()
    for revision in decision.revisions:
        (root / "manifests" / revision).unlink()
    if gone:
        sync_folder(root / "names")
        sync_folder(root / "manifests")
    for block in sorted(decision.blocks):
        (root / "verified" / block).unlink(missing_ok=True)
        (root / "blocks" / block).unlink(missing_ok=True)
        _forget_partial(root, block)
    for block in {name[:64] for name in _files(root / "partial")} & {*_files(root / "blocks")}:
        _forget_partial(root, block)  # it came in another way
    here = set(_files(root / "manifests"))
    for folder in ("pins", "used"):
        for name in set(_files(root / folder)) - here:
            (root / folder / name).unlink(missing_ok=True)


def _forget_partial(root: Path, block: str) -> None:
    """What has landed of a block, unless a process is at work on it: first what is known of the bytes, then they."""
    path = root / "partial" / block
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        handle = None
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for piece_map in path.parent.glob(f"{block}.*"):
            piece_map.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        if handle is not None:
            os.close(handle)
