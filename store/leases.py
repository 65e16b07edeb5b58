"""What living processes need of the store they share: revisions that they serve, blocks that they write or wait for.

::

    leases/<random>    JSON: process, revisions, blocks; locked by its owner for as long as it lives

The lock is the kernel's, so a lease ends with its process, however that ends; a file that nobody has locked says
nothing. Claims are made through the gate (`store.disk`): whoever has made one may then look what is here, and
nothing of it goes away.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import finalize

from paceline.store.disk import disk_errors, shared
from paceline.store.errors import StoreError
from paceline.store.manifest import Block
from paceline.wire.ids import Revision

_DRAFTS = 0
"""The claim under which blocks are written before any manifest names them."""


class Lease:
    """One process's claims on a store; it has no file before the first one. May be used from several threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._handle: int | None = None
        self._end: Callable[[], object] | None = None
        self._path = root / "leases" / uuid.uuid4().hex
        self._revisions: set[str] = set()
        self._claims: dict[int, dict[str, int]] = {_DRAFTS: {}}
        self._lock = Lock()
        self._last = _DRAFTS

    # --- revisions

    def hold(self, *revisions: Revision) -> None:
        """These stay, with all blocks that they name, and count as used now. Raises DiskFull, StoreError."""
        with self._speaking():
            self._revisions |= {it.hex() for it in revisions}
        for it in revisions:
            touch(self._root, it.hex())

    def hold_exactly(self, revisions: Iterable[Revision]) -> None:
        """As `hold`, and no others; those that are let go count as used until now."""
        wanted = {it.hex() for it in revisions}
        changed = wanted ^ self._revisions
        if changed:
            with self._speaking():
                self._revisions = wanted
        for it in changed:
            touch(self._root, it)

    # --- blocks

    def draft(self, block: Block) -> None:
        """A block is about to appear, and the manifest that names it comes later."""
        with self._speaking():
            self._claims[_DRAFTS][block.hash] = block.size

    def named(self, blocks: Iterable[Block]) -> None:
        """A manifest that is here names these blocks: no draft needs them any more."""
        names = {block.hash for block in blocks}
        if names & self._claims[_DRAFTS].keys():
            with suppress(StoreError), self._speaking():  # a claim too much is said again the next time
                for name in names:
                    self._claims[_DRAFTS].pop(name, None)

    def claim(self, blocks: Mapping[str, int], *, gate: bool = True) -> int:
        """Blocks that are to come, with their sizes: the number to `drop` them by. `gate` False: we are alone in it."""
        with self._speaking(gate=gate):
            self._last += 1
            self._claims[self._last] = dict(blocks)
            return self._last

    def drop(self, claim: int) -> None:
        """End a claim on blocks."""
        with suppress(StoreError), self._speaking():  # as above
            self._claims.pop(claim, None)

    def close(self) -> None:
        """End all claims, as the end of the process does."""
        with self._lock:
            if self._end is not None:
                self._end()
            self._handle = None

    # --- the file

    @contextmanager
    def _speaking(self, *, gate: bool = True) -> Iterator[None]:
        """Change what is claimed inside, and it is said at the end. The gate comes first: who is alone in it may speak,
        too."""
        with disk_errors(self._root), shared(self._root) if gate else nullcontext(), self._lock:
            yield
            self._write()

    def _write(self) -> None:
        if self._handle is None:
            self._path.parent.mkdir(exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            self._end = finalize(self, _end, self._path, self._handle)  # no later than with the process
        blocks = {name: size for claim in self._claims.values() for name, size in claim.items()}
        said = {"process": os.getpid(), "revisions": sorted(self._revisions), "blocks": blocks}
        data = json.dumps(said).encode()
        os.pwrite(self._handle, data, 0)
        os.truncate(self._handle, len(data))


def _end(path: Path, handle: int) -> None:
    path.unlink(missing_ok=True)
    os.close(handle)


@dataclass(frozen=True, slots=True)
class Claims:
    """All that living processes need: `revisions` with a process that said so, `blocks` with their sizes.

    `unclear`: somebody's claim could not be read, so nothing may go.
    """

    revisions: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    unclear: bool = False


def living(root: Path) -> Claims:
    """Read all leases; those of dead processes are removed. To be called alone in the gate."""
    revisions: dict[str, int] = {}
    blocks: dict[str, int] = {}
    unclear = False
    folder = root / "leases"
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        said = _said(path)
        try:
            if said is not None:
                revisions |= dict.fromkeys(map(str, said["revisions"]), int(said["process"]))
                blocks |= {str(name): int(size) for name, size in said["blocks"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            unclear = True
    return Claims(revisions, blocks, unclear)


def _said(path: Path) -> Any:
    """A living process's words; None, and no file any more, where nobody holds the lock."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return json.loads(path.read_bytes())
        except ValueError:
            return {}
    else:
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(handle)


def touch(root: Path, revision: str) -> None:
    """A revision is used now. A disk that takes no note of it costs only the order of what goes first."""
    try:
        (root / "used").mkdir(exist_ok=True)
        (root / "used" / revision).touch()
    except OSError:
        return
