"""Journals on disk: what is read is what was written, room is given back, a full or missing disk is no error."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from paceline.node.spill import SpillRoom


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20))
def test_what_is_read_is_what_was_written(pieces: list[bytes]) -> None:
    room = SpillRoom(Path(tempfile.gettempdir()), 1000)
    file = room.journal()
    kept = [(at, piece) for piece in pieces if (at := file.write(piece)) is not None]
    assert sum(len(piece) for _, piece in kept) == room.used <= 1000
    for at, piece in kept:
        assert file.read(at, len(piece)) == piece
    file.clear()
    assert room.used == 0
    assert file.read(0, 1) is None


def test_the_room_is_shared_and_given_back(tmp_path: Path) -> None:
    room = SpillRoom(tmp_path / "journals", 100)
    one, other = room.journal(), room.journal()
    assert one.write(bytes(60)) == 0
    assert other.write(bytes(60)) is None
    assert room.refused == 1
    one.clear()
    assert other.write(bytes(60)) == 0
    assert list((tmp_path / "journals").iterdir()) == [], "the files have no names"


def test_a_folder_that_cannot_be_made_is_a_short_journal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    room = SpillRoom(tmp_path / "file" / "journals", 100)
    assert room.journal().write(b"rows") is None
    assert (room.used, room.refused) == (0, 1)


def test_a_full_disk_is_a_short_journal() -> None:
    room = SpillRoom(Path("/unused"), 1 << 20)
    file = room.journal()
    file._handle = os.open("/dev/full", os.O_RDWR)
    assert file.write(bytes(5000)) is None
    assert (room.used, room.refused) == (0, 1)
    file.clear()
