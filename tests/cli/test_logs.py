"""Events as lines of JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.cli.logs import log_to
from paceline.wire.errors import InvalidRequest

LOG = logging.getLogger("paceline.somewhere")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A log that this process writes to."""
    root = logging.getLogger("paceline")
    before = root.level, root.propagate
    handler = log_to(str(tmp_path / "log.jsonl"))
    yield tmp_path / "log.jsonl"
    root.removeHandler(handler)
    handler.close()
    root.setLevel(before[0])
    root.propagate = before[1]


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_event_is_a_line_with_its_facts(file: Path) -> None:
    LOG.info("session opened", {"trace": "ab", "100%": "%s"})
    (told,) = lines(file)
    assert (told["event"], told["level"], told["room"]) == ("session opened", "info", "somewhere")
    assert (told["trace"], told["100%"]) == ("ab", "%s")


def test_an_exception_is_part_of_its_line(file: Path) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        LOG.exception("a bug in %s", "this")
    (told,) = lines(file)
    assert told["event"] == "a bug in this"
    assert "ValueError: why" in str(told["exception"])


def test_details_below_info_are_left_out(file: Path) -> None:
    LOG.debug("detail")
    assert lines(file) == []


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        log_to(str(tmp_path / "no" / "such"))
