"""What a link between two peers is like: profiles, their file, the built-in ones, and when a byte would arrive.

Pure but for `read`: time and size are arguments. Refuses to know channels; `net.conditioner` applies what is said here.
The file's format is in docs/link-profiles.md.
"""

from __future__ import annotations

import json
import math
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paceline.wire.errors import InvalidRequest

ANY = "*"

_MBIT_BYTES = 1_000_000 / 8
_MOST = 1e9
_CURE = "see docs/link-profiles.md"


@dataclass(frozen=True, slots=True)
class LinkWeather:
    """One direction between two peers.

    `jitter_s`: uniform in ``[0, jitter_s)``, on top of the latency, drawn for each write; order is kept.
    `stalls_per_s`, `stall_s`: nothing arrives for `stall_s`, beginning at random that many times a second. TCP shows a
    lost packet to its user as just such a pause. `partition` holds both directions, and loses nothing.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bandwidth_bytes_s: float = math.inf
    stalls_per_s: float = 0.0
    stall_s: float = 0.0
    partition: bool = False


@dataclass(frozen=True, slots=True)
class LinkRow:
    """Some of `LinkWeather`'s fields, for what `source` sends to `target`. Both are patterns, see `names`."""

    source: str
    target: str
    changes: Mapping[str, float | bool]


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """Rows in order: of those that match, a later one overrides an earlier one, field by field.

    `uplink_bytes_s` is shared by everything that one process sends. `seed`: the same jitter and stalls in each run,
    as far as the process sends the same at the same times.
    """

    rows: tuple[LinkRow, ...] = ()
    uplink_bytes_s: float = math.inf
    seed: int | None = None

    def towards(self, source: str, target: str) -> LinkWeather:
        """What `source`'s bytes to `target` meet. A row that says `partition` counts in either direction."""
        changes: dict[str, Any] = {}
        for row in self.rows:
            if names(row.source, source) and names(row.target, target):
                changes |= row.changes
            elif "partition" in row.changes and names(row.source, target) and names(row.target, source):
                changes["partition"] = row.changes["partition"]
        return replace(CALM, **changes)


CALM = LinkWeather()


def names(pattern: str, peer: str) -> bool:
    """``*``, a peer id, or the beginning or the end of one."""
    return pattern == ANY or peer.startswith(pattern) or peer.endswith(pattern)


def everywhere(weather: Mapping[str, float], uplink_bytes_s: float = math.inf) -> LinkProfile:
    """The same for every pair."""
    return LinkProfile((LinkRow(ANY, ANY, weather),), uplink_bytes_s)


BUILT_IN: dict[str, LinkProfile] = {
    "lan": everywhere({"latency_s": 0.0002, "jitter_s": 0.0001, "bandwidth_bytes_s": 1000 * _MBIT_BYTES}),
    "city": everywhere({"latency_s": 0.003, "jitter_s": 0.0005, "bandwidth_bytes_s": 500 * _MBIT_BYTES}),
    "continent": everywhere({"latency_s": 0.025, "jitter_s": 0.001, "bandwidth_bytes_s": 200 * _MBIT_BYTES}),
    "world": everywhere(
        {
            "latency_s": 0.09,
            "jitter_s": 0.004,
            "bandwidth_bytes_s": 100 * _MBIT_BYTES,
            "stalls_per_s": 0.02,
            "stall_s": 0.2,
        }
    ),
    "home-uplink": everywhere(
        {"latency_s": 0.012, "jitter_s": 0.004, "stalls_per_s": 0.02, "stall_s": 0.2}, 20 * _MBIT_BYTES
    ),
}
"""Round figures of the usual order for such links, chosen, not measured."""


# --- the file ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    """A key of the file: which field it sets, and what one unit of it is."""

    name: str
    unit: float
    least: float = 0.0


_ROW_KEYS: dict[str, _Field] = {
    "latency_ms": _Field("latency_s", 0.001),
    "jitter_ms": _Field("jitter_s", 0.001),
    "bandwidth_mbit_s": _Field("bandwidth_bytes_s", _MBIT_BYTES, least=0.001),
    "stalls_per_s": _Field("stalls_per_s", 1.0),
    "stall_ms": _Field("stall_s", 0.001),
}
_UPLINK = _Field("uplink_bytes_s", _MBIT_BYTES, least=0.001)


def read(name_or_path: str) -> tuple[LinkProfile, Path | None]:
    """A built-in profile by its name, or a file's and its path. Raises InvalidRequest."""
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path], None
    path = Path(name_or_path)
    return read_file(path), path


def read_file(path: Path) -> LinkProfile:
    """Raises InvalidRequest that names the file and what is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        cure = f"name a file or one of {', '.join(BUILT_IN)}"
        raise InvalidRequest(f"cannot read link profile {path}: {error}", cure=cure) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"link profile {path} does not parse: {error}", cure=_CURE) from error
    try:
        return parse(data)
    except InvalidRequest as error:
        raise InvalidRequest(f"link profile {path}: {error.message}", cure=_CURE) from error


def parse(data: object) -> LinkProfile:
    """The file's tables → profile. Raises InvalidRequest that says where."""
    top = _table(data, {"base", "seed", "uplink_mbit_s", "links"}, "the top level")
    profile = LinkProfile()
    if (base := top.get("base")) is not None:
        if not isinstance(base, str) or base not in BUILT_IN:
            raise InvalidRequest(f"base {base!r} is not one of {', '.join(BUILT_IN)}")
        profile = BUILT_IN[base]
    if (seed := top.get("seed")) is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise InvalidRequest(f"seed {seed!r} is not a whole number")
    links = top.get("links", [])
    if not isinstance(links, list):
        raise InvalidRequest("links is not a list of tables")
    rows = tuple(_row(row, f"links[{index}]") for index, row in enumerate(links))
    uplink = profile.uplink_bytes_s
    if "uplink_mbit_s" in top:
        uplink = _number(top["uplink_mbit_s"], _UPLINK, "uplink_mbit_s")
    return LinkProfile(profile.rows + rows, uplink, seed)


def _row(data: object, where: str) -> LinkRow:
    table = _table(data, {"from", "to", "partition", *_ROW_KEYS}, where)
    ends = [table.get(key, ANY) for key in ("from", "to")]
    if not all(isinstance(end, str) and end for end in ends):
        raise InvalidRequest(f'{where}: from and to are peer ids, parts of them, or "*"')
    changes: dict[str, float | bool] = {
        key.name: _number(table[name], key, f"{where}.{name}") for name, key in _ROW_KEYS.items() if name in table
    }
    if "partition" in table:
        if not isinstance(table["partition"], bool):
            raise InvalidRequest(f"{where}.partition is not true or false")
        changes["partition"] = table["partition"]
    return LinkRow(ends[0], ends[1], changes)


def _table(data: object, known: set[str], where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InvalidRequest(f"{where} is not a table")
    if strange := sorted(set(data) - known):
        raise InvalidRequest(f"{where}: unknown key {strange[0]!r}; known: {', '.join(sorted(known))}")
    return data


def _number(value: object, key: _Field, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not key.least <= value <= _MOST:
        raise InvalidRequest(f"{where} is {value!r}, not a number from {key.least:g} to {_MOST:g}")
    return value * key.unit


# --- when a byte arrives ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Wire:
    """A bottleneck that carries one byte after the other: a token bucket without depth."""

    free_at: float = -math.inf

    def carry(self, at: float, size: int, bytes_s: float) -> float:
        """When the last of `size` bytes that come at `at` has left."""
        self.free_at = max(at, self.free_at) + size / bytes_s
        return self.free_at


@dataclass(slots=True)
class Schedule:
    """One direction of one channel, behind an uplink that it shares. Remembers what is under way."""

    chance: random.Random
    uplink: Wire
    wire: Wire = field(default_factory=Wire)
    _last_due: float = -math.inf
    _looked_at: float = -math.inf
    _stalled_until: float = -math.inf

    def due(self, now: float, sizes: Sequence[int], weather: LinkWeather, uplink_bytes_s: float) -> list[float]:
        """When each of some messages, written together now, has arrived: in order, never before those sent earlier."""
        extra = weather.latency_s + (self.chance.random() * weather.jitter_s if weather.jitter_s else 0.0)
        stalled_until = self._stall(now, weather)
        arrivals: list[float] = []
        for size in sizes:
            sent = self.uplink.carry(now, size, uplink_bytes_s)
            left = self.wire.carry(sent, size, weather.bandwidth_bytes_s)
            self._last_due = max(self._last_due, max(left, stalled_until) + extra)
            arrivals.append(self._last_due)
        return arrivals

    def free_at(self) -> float:
        """When the bandwidth is free again. Neither latency nor stalls make a sender wait."""
        return max(self.wire.free_at, self.uplink.free_at)

    def _stall(self, now: float, weather: LinkWeather) -> float:
        """The end of the stall, if any, that holds what is sent now.

        Stalls begin as a Poisson process, so the age of the latest one is exponential; only those that began since we
        last looked and would still last are drawn, which takes the same time after an idle hour. What was sent in one
        stall arrives together, as behind a lost packet: the bandwidth meanwhile was not idle.
        """
        if weather.stalls_per_s and weather.stall_s:
            age = self.chance.expovariate(weather.stalls_per_s)
            if age < min(weather.stall_s, now - self._looked_at):
                self._stalled_until = max(self._stalled_until, now - age + weather.stall_s)
        self._looked_at = now
        return self._stalled_until
