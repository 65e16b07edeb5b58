"""What the store asks of the disk: errors with a name, folders that are synced, and one gate for all processes.

The gate is a lock of the kernel on one file, so it opens by itself when whoever holds it dies. Many may pass together
(`shared`): those who say what they need. Who takes away passes alone (`alone`), and so sees all that was said.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from paceline.store.errors import DiskFull, StoreError

CURE = "make room: paceline models gc, paceline models remove; or set PACELINE_HOME elsewhere"


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """OSError → DiskFull, StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room left in {root}", cure=CURE) from error
        raise StoreError(f"{root}: {error.strerror or error}", cure="check the folder, or set PACELINE_HOME") from error


def sync_folder(folder: Path) -> None:
    """What was renamed, made or removed in a folder is so after a crash, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(root: Path, how: int) -> Iterator[None]:
    handle = os.open(root / "gate", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def shared(root: Path) -> AbstractContextManager[None]:
    """Through the gate with others who say what they need; waits while something is taken away."""
    return _locked(root, fcntl.LOCK_SH)


def alone(root: Path) -> AbstractContextManager[None]:
    """Through the gate alone."""
    return _locked(root, fcntl.LOCK_EX)
