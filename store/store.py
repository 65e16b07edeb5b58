"""The model store: immutable blocks by hash, manifests by revision, names. Knows files; no tensors, no network.

::

    blocks/<sha256>          immutable, written once, verified on first use
    verified/<sha256>        how a block's file looked when it was last verified, by any process of this machine
    manifests/<revision>     canonical bytes of a manifest
    names/<quoted name>      the revision that this machine gave the name to
    releases/…               what publishers say (store.releases)
    partial/…                blocks that are being fetched (store.partial)
    leases/…, gate           what living processes need, and who may take away (store.leases, store.collecting)
    used/, pins/<revision>   when a revision was last used; which ones their owner wants kept

Every file appears by rename after fsync, so a crash leaves either the whole file or a temporary one that the next
`Store` over the same root clears. Several processes may use one root.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote

import platformdirs

from paceline.store import collecting
from paceline.store.disk import disk_errors, shared, sync_folder
from paceline.store.leases import Lease, touch
from paceline.store.manifest import Block, Manifest, decode
from paceline.wire.errors import CorruptBlock, ModelNotFound
from paceline.wire.ids import Revision, Span

Progress = Callable[[int, int], None]
"""Called with ``(done, total)`` bytes of a long operation."""

_PIECE = 4 * 1024 * 1024
_STALE_S = 24 * 3600.0
_MARK_S = 7 * 24 * 3600.0
"""Blocks are hashed again after so long: disks forget."""

_SETTLED_S = 2.0
"""A file that changed this lately might change again and look the same: clocks of file systems are coarse."""


def default_root() -> Path:
    """``$PACELINE_HOME/store``, else the platform's user data folder."""
    home = os.environ.get("PACELINE_HOME")
    return (Path(home) if home else Path(platformdirs.user_data_dir("paceline"))) / "store"


@dataclass(frozen=True, slots=True)
class Listing:
    """One named model in a store. `present`: bytes of its blocks that are here, of `total`."""

    name: str
    manifest: Manifest
    present: int
    total: int


class BlockWriter:
    """Collects one block in a temporary file; `Store.writer` names it by its hash at the end."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._hash = sha256()
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises DiskFull."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        while len(view):
            view = view[os.write(self._file, view) :]
        self.size += memoryview(data).nbytes

    @property
    def block(self) -> Block:
        """What has been written so far, as a block."""
        return Block(self._hash.hexdigest(), self.size)


class Store:
    """A folder of models. All methods block. `lease`: what this process needs of it; a file is open for that."""

    def __init__(self, root: Path | None = None, quota_bytes: int = 0) -> None:
        """`quota_bytes`: of blocks, with those of other processes; 0: none. Raises StoreError for an unusable root."""
        self.root = root or default_root()
        self.quota_bytes = quota_bytes
        self.lease = Lease(self.root)
        self._verified: set[bytes] = set()
        with disk_errors(self.root):
            for folder in ("blocks", "manifests", "names", "temp", "verified"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            self._clear_stale()

    # --- blocks

    def has(self, digest: bytes) -> bool:
        """True where the block's file is here (not yet verified)."""
        return self._block_path(digest).exists()

    def path(self, digest: bytes, progress: Progress | None = None) -> Path:
        """The block's file, verified. Raises ModelNotFound where it is not here, CorruptBlock where it is bad."""
        path = self._block_path(digest)
        if not path.exists():
            raise ModelNotFound(f"block {digest.hex()[:12]} is not in {self.root}", cure="pull the model again")
        if digest not in self._verified:
            seen = _look(path)
            if not self._marked(digest, seen):
                self._verify(path, digest, progress)
                self._mark(digest, seen)
            self._verified.add(digest)
        return path

    def _marked(self, digest: bytes, seen: os.stat_result) -> bool:
        """Whether another process has hashed this very file, in the last days."""
        mark = self.root / "verified" / digest.hex()
        try:
            return time.time() - mark.stat().st_mtime < _MARK_S and mark.read_text() == _looks(seen)
        except OSError:
            return False

    def _mark(self, digest: bytes, seen: os.stat_result) -> None:
        """Save the other processes of this machine the same work. A torn mark fits no file."""
        if time.time() - seen.st_ctime < _SETTLED_S:
            return
        with suppress(OSError):
            (self.root / "verified" / digest.hex()).write_text(_looks(seen))

    def verified(self, digest: bytes) -> Path | None:
        """The block's file, if it has been verified in this process."""
        return self._block_path(digest) if digest in self._verified else None

    def read(self, digest: bytes) -> bytes:
        """A small block's bytes, verified. Raises as `path`."""
        return self.path(digest).read_bytes()

    def put(self, data: bytes) -> Block:
        """Store a block. Raises DiskFull."""
        with self.writer() as writer:
            writer.write(data)
        return writer.block

    @contextmanager
    def writer(self, expect: Block | None = None) -> Iterator[BlockWriter]:
        """Write a block piece by piece; it exists once the ``with`` body has ended without an exception.

        With `expect`, anything else than that block is refused with CorruptBlock. The block stays until a manifest
        names it, or this process ends. Raises QuotaReached, DiskFull.
        """
        with disk_errors(self.root), self._temporary() as (handle, temporary):
            writer = BlockWriter(handle)
            yield writer
            if expect is not None and writer.block != expect:
                raise CorruptBlock(f"wanted block {expect.hash[:12]}, got {writer.block.hash[:12]}")
            target = self._block_path(writer.block.digest)
            self._keep(writer.block)
            os.fsync(handle)
            os.replace(temporary, target)
            sync_folder(target.parent)
            self._verified.add(writer.block.digest)

    def _keep(self, block: Block) -> None:
        """Claim a block before it appears: whoever takes away from the store must not do it in between."""
        claim = self.reserve([block]) if self.quota_bytes else None
        self.lease.draft(block)
        if claim is not None:
            self.lease.drop(claim)

    def reserve(self, blocks: Iterable[Block]) -> int:
        """Room for blocks that are to come, and a claim on them: its number, for ``lease.drop``.

        With a quota, revisions that nobody needs go for it, those used longest ago first. Raises QuotaReached,
        DiskFull.
        """
        return collecting.make_room(
            self.root, self.lease, {block.hash: block.size for block in blocks}, self.quota_bytes
        )

    def adopt(self, path: Path, handle: int, block: Block) -> None:
        """Take over a file that has been written elsewhere under the same root, as `block`, whose hash it has.

        `handle`: the open file. Raises DiskFull; the file stays where it is then.
        """
        with disk_errors(self.root):
            os.fsync(handle)
            target = self._block_path(block.digest)
            os.replace(path, target)
            sync_folder(target.parent)
            self._verified.add(block.digest)

    def remove_corrupt(self, digest: bytes) -> None:
        """Forget a block that failed verification, so that it can be fetched again."""
        self._verified.discard(digest)
        (self.root / "verified" / digest.hex()).unlink(missing_ok=True)
        self._block_path(digest).unlink(missing_ok=True)

    def missing(self, manifest: Manifest, span: Span | None = None) -> list[Block]:
        """Blocks of `manifest` (or of serving one span of it) that are not here."""
        return [block for block in (*manifest.blocks(span), *manifest.texts()) if not self.has(block.digest)]

    # --- manifests and names

    def put_manifest(self, manifest: Manifest, *, name: bool = True) -> Revision:
        """Store a manifest and, with `name`, let its name mean this revision."""
        revision, data = manifest.revision, manifest.encode()
        with disk_errors(self.root), shared(self.root):
            self._write(self.root / "manifests" / revision.hex(), data)
            if name:
                self._write(self._name_path(manifest.name), revision.hex().encode())
        touch(self.root, revision.hex())
        self.lease.named((*manifest.blocks(), *manifest.texts()))
        return revision

    def manifest(self, which: str | Revision) -> Manifest:
        """By name, by revision, or by the hexadecimal of one. Raises ModelNotFound, CorruptBlock."""
        path = self.root / "manifests" / (self._resolve(which) if isinstance(which, str) else which.hex())
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            shown = which if isinstance(which, str) else which.hex()
            raise ModelNotFound(f"model {shown!r} is not in {self.root}", cure=f"try: paceline pull {shown}") from error
        if sha256(data).hexdigest() != path.name:
            raise CorruptBlock(f"manifest {path.name[:12]} does not have the hash it is named by")
        return decode(data)

    def named(self, which: str) -> Revision | None:
        """The revision that this machine gave the name `which`, or that has this hexadecimal and a name here."""
        path = self._name_path(which)
        if path.exists():
            return Revision(bytes.fromhex(path.read_text().strip()))
        named = {path.read_text().strip() for path in (self.root / "names").iterdir()}
        return Revision(bytes.fromhex(which)) if which in named else None

    def manifest_path(self, revision: Revision) -> Path:
        """Where that manifest's bytes lie, if they are here."""
        return self.root / "manifests" / revision.hex()

    def list(self) -> list[Listing]:
        """The named models, by name."""
        found = []
        for path in sorted((self.root / "names").iterdir()):
            with suppress(ModelNotFound):  # it has just been removed
                found.append(self._listing(unquote(path.name)))
        return found

    def pin(self, revision: Revision, wanted: bool = True) -> None:
        """A revision never goes to make room, until it is unpinned. Raises ModelNotFound, DiskFull."""
        self.manifest(revision)
        path = self.root / "pins" / revision.hex()
        if wanted:
            self.write_new(path, b"")
            return
        path.unlink(missing_ok=True)

    def _listing(self, name: str) -> Listing:
        manifest = self.manifest(name)
        blocks = {block.hash: block for block in (*manifest.blocks(), *manifest.texts())}.values()
        present = sum(block.size for block in blocks if self.has(block.digest))
        return Listing(name, manifest, present, sum(block.size for block in blocks))

    def _resolve(self, which: str) -> str:
        name = self._name_path(which)
        if name.exists():
            return name.read_text().strip()
        return which if len(which) == 64 and which.isalnum() else "absent"

    # --- files

    def _block_path(self, digest: bytes) -> Path:
        return self.root / "blocks" / digest.hex()

    def _name_path(self, name: str) -> Path:
        return self.root / "names" / (quote(name, safe="").replace(".", "%2E") or "%00")

    def _verify(self, path: Path, digest: bytes, progress: Progress | None) -> None:
        hasher, done, total = sha256(), 0, path.stat().st_size
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                hasher.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
        if hasher.digest() != digest:
            raise CorruptBlock(f"block {path.name[:12]} on disk is damaged", cure="pull the model again")

    def _write(self, target: Path, data: bytes) -> None:
        with disk_errors(self.root), self._temporary() as (handle, temporary):
            os.write(handle, data)
            os.fsync(handle)
            os.replace(temporary, target)
            sync_folder(target.parent)

    def write_new(self, target: Path, data: bytes) -> bool:
        """Put a small file in place, unless there is one: then False, and the old one stays. Raises DiskFull."""
        with disk_errors(self.root), self._temporary() as (handle, temporary):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.write(handle, data)
            os.fsync(handle)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            sync_folder(target.parent)
        return True

    @contextmanager
    def _temporary(self) -> Iterator[tuple[int, str]]:
        handle, temporary = tempfile.mkstemp(dir=self.root / "temp")
        try:
            yield handle, temporary
        finally:
            os.close(handle)
            Path(temporary).unlink(missing_ok=True)

    def _clear_stale(self) -> None:
        """Remove what a crash left behind; a day's grace, because another process may be writing."""
        handle, mine = tempfile.mkstemp(dir=self.root / "temp")
        now = os.fstat(handle).st_mtime
        os.close(handle)
        for path in (self.root / "temp").iterdir():
            with suppress(FileNotFoundError):  # another process that opens this store tidies up as well
                if path == Path(mine) or now - path.stat().st_mtime > _STALE_S:
                    path.unlink()


def _look(path: Path) -> os.stat_result:
    with disk_errors(path.parent):
        return path.stat()


def _looks(seen: os.stat_result) -> str:
    """Differs after any change of the file's bytes or place."""
    return f"{seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns} {seen.st_ino}"
