"""What `make bench` writes: medians with spread, older medians beside them, and plots that are well-formed."""

from __future__ import annotations

import json
from pathlib import Path
from xml.dom import minidom

import msgspec

from bench.plots import Bar, chart
from bench.table import ARMS, PLOTTED, Row, Table, write
from bench.weather import Weather
from paceline.net import profiles

FACTS = {"date": "today", "commit": "abc", "processor": "one"}


def _table(*speeds: float) -> Table:
    rows = [
        Row("local", "one process, no network", "decode", "tokens/s", list(speeds)),
        Row("links", "a < b & c", "decode", "tokens/s", [2.0]),
    ]
    return Table(FACTS, rows)


def test_every_arm_has_something_to_plot() -> None:
    assert set(PLOTTED) == set(ARMS)


def test_table_and_plots_compare_with_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, _table(3.0, 1.0, 2.0), None)
    before = msgspec.json.decode((tmp_path / "table.json").read_bytes(), type=Table)
    assert before == _table(3.0, 1.0, 2.0)
    write(tmp_path, _table(5.0, 4.0, 6.0), before)
    text = (tmp_path / "table.md").read_text()
    assert "| one process, no network | decode | 5 tokens/s | 4 – 6 | 3 | 2 |" in text
    assert "before: commit abc" in text
    for name in ("local.svg", "links.svg"):
        assert name in text
        drawn = minidom.parseString((tmp_path / name).read_text())
        assert drawn.documentElement is not None
        assert "mark: before" in (tmp_path / name).read_text()


def test_a_chart_of_nothing_is_still_a_chart() -> None:
    for bars in ([], [Bar("zero", 0.0, 0.0, 0.0)]):
        minidom.parseString(chart("nothing", "s", bars))


def test_weather_is_a_profile_that_processes_can_read(tmp_path: Path) -> None:
    file = tmp_path / "links.json"
    weather = Weather(file)
    for change in (
        lambda: weather.everywhere("continent"),
        lambda: weather.everywhere(latency_ms=25.0),
        lambda: weather.cut(["12D3KooWa", "12D3KooWb"]),
        lambda: weather.heal(["12D3KooWa"]),
        weather.heal,
        weather.everywhere,
    ):
        change()
        profiles.read_file(file)
    weather.cut(["12D3KooWa"])
    rows = json.loads(file.read_text())["links"]
    assert rows == [{"from": "12D3KooWa", "to": "*", "partition": True}]
