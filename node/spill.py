"""Journals on disk: what does not fit into memory any more, in one file a journal that nobody else can open.

The file has no name, so it is gone with the process, however that ends. A disk that is full or broken is no error: the
journal is short then, and repairs fall to the next tier.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from paceline.wire.codec import Buffer


class SpillRoom:
    """All journals' files in `folder`, at most `most_bytes` together."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.used = self.refused = 0
        self._folder = folder
        self._most = most_bytes

    def journal(self) -> SpillFile:
        """Room for one more journal."""
        return SpillFile(self)

    def open(self) -> int | None:
        """A new file without a name; None where there can be none."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(dir=self._folder)
            os.unlink(path)
        except OSError:
            self.refused += 1
            return None
        return handle

    def reserve(self, n: int) -> bool:
        """Take `n` bytes of the common room."""
        if self.used + n > self._most:
            self.refused += 1
            return False
        self.used += n
        return True


class SpillFile:
    """A `consistency.journal.Spill`."""

    def __init__(self, room: SpillRoom) -> None:
        self._room = room
        self._handle: int | None = None
        self._end = 0

    def write(self, data: Buffer) -> int | None:
        """Where `data` lies from now on; None where the disk or the room is full."""
        n = len(data)
        if not self._room.reserve(n):
            return None
        if self._handle is None:
            self._handle = self._room.open()
        written = self._write(data)
        if not written:
            self._room.used -= n
            return None
        self._end += n
        return self._end - n

    def _write(self, data: Buffer) -> bool:
        if self._handle is None:
            return False
        try:
            return os.pwrite(self._handle, data, self._end) == len(data)
        except OSError:
            self._room.refused += 1
            return False

    def read(self, at: int, n: int) -> bytes | None:
        """`n` bytes from `at`; None where they cannot be read."""
        if self._handle is None:
            return None
        try:
            return os.pread(self._handle, n, at)
        except OSError:
            return None

    def clear(self) -> None:
        """Give the file and its room back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        self._room.used -= self._end
        self._end = 0
