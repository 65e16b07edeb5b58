"""Link profiles: which row holds for whom, what a file may say, and when bytes arrive."""

from __future__ import annotations

import json
import math
import random
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.net import profiles
from paceline.net.profiles import ANY, BUILT_IN, LinkProfile, LinkRow, LinkWeather, Schedule, Wire
from paceline.wire.errors import InvalidRequest

TOML = """
base = "city"
seed = 7
uplink_mbit_s = 8

[[links]]
from = "alice"
latency_ms = 25

[[links]]
to = "bob"
stalls_per_s = 0.5
stall_ms = 300
bandwidth_mbit_s = 80
partition = true
"""

# --- rows and files ---------------------------------------------------------------------------------------------


def test_a_later_row_overrides_an_earlier_one_field_by_field() -> None:
    profile = LinkProfile(
        (
            LinkRow(ANY, ANY, {"latency_s": 1.0, "jitter_s": 2.0}),
            LinkRow("alice", ANY, {"latency_s": 3.0}),
            LinkRow("alice", "bob", {"jitter_s": 4.0}),
        )
    )
    assert profile.towards("carol", "bob") == LinkWeather(1.0, 2.0)
    assert profile.towards("alice", "carol") == LinkWeather(3.0, 2.0)
    assert profile.towards("alice", "bob") == LinkWeather(3.0, 4.0)
    assert profile.towards("bob", "alice") == LinkWeather(1.0, 2.0)


def test_a_partition_is_for_both_directions_and_can_be_taken_back() -> None:
    rows = (LinkRow("alice", ANY, {"partition": True}), LinkRow("bob", "alice", {"partition": False, "latency_s": 1.0}))
    profile = LinkProfile(rows)
    assert profile.towards("alice", "carol").partition
    assert profile.towards("carol", "alice").partition
    assert not profile.towards("alice", "bob").partition
    assert not profile.towards("bob", "alice").partition
    assert profile.towards("alice", "bob").latency_s == 0.0
    assert not profile.towards("bob", "carol").partition


def test_peers_are_named_by_a_part_of_their_id() -> None:
    assert profiles.names(ANY, "12D3KooWabc")
    assert profiles.names("12D3KooWa", "12D3KooWabc")
    assert profiles.names("abc", "12D3KooWabc")
    assert not profiles.names("Woo", "12D3KooWabc")
    assert not profiles.names("KooW", "12D3KooWabc")


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "links.toml").write_text(TOML)
    (tmp_path / "links.json").write_text(json.dumps(tomllib.loads(TOML)))
    profile, file = profiles.read(str(tmp_path / "links.toml"))
    assert (profile, file) == (profiles.read_file(tmp_path / "links.json"), tmp_path / "links.toml")
    city = BUILT_IN["city"].towards("a", "b")
    assert profile.towards("alice", "carol") == LinkWeather(0.025, city.jitter_s, city.bandwidth_bytes_s)
    assert profile.towards("carol", "bob") == LinkWeather(city.latency_s, city.jitter_s, 1e7, 0.5, 0.3, True)
    assert (profile.uplink_bytes_s, profile.seed) == (1e6, 7)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_profiles_need_no_file(name: str) -> None:
    profile, file = profiles.read(name)
    assert file is None
    weather = profile.towards("a", "b")
    assert 0 < weather.latency_s < 0.2
    assert not weather.partition
    assert min(weather.bandwidth_bytes_s, profile.uplink_bytes_s) < math.inf


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"links": [{"latency": 3}]}', r"links\[0\]: unknown key 'latency'"),
        ('{"links": [{"latency_ms": -1}]}', r"links\[0\].latency_ms is -1"),
        ('{"links": [{"latency_ms": true}]}', "not a number"),
        ('{"links": [{"jitter_ms": NaN}]}', "not a number"),
        ('{"links": [{"bandwidth_mbit_s": 0}]}', "not a number from 0.001"),
        ('{"links": [{"stall_ms": 1' + "0" * 400 + "}]}", "not a number"),
        ('{"links": [{"from": ""}]}', "from and to"),
        ('{"links": [{"to": 3}]}', "from and to"),
        ('{"links": [{"partition": 1}]}', "true or false"),
        ('{"links": {}}', "not a list"),
        ('{"links": [3]}', "not a table"),
        ('{"base": "moon"}', "moon"),
        ('{"seed": 1.5}', "whole number"),
        ("[]", "top level"),
        ("{", "does not parse"),
        ("[" * 100_000, "does not parse"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_place(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "links.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=says) as caught:
        profiles.read(str(file))
    assert str(file) in caught.value.message
    assert caught.value.cure


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["base", "links", "from", "to", "latency_ms", "seed"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_tree_is_a_profile_or_refused(data: object) -> None:
    try:
        profile = profiles.parse(data)
    except InvalidRequest:
        return
    assert isinstance(profile.towards("a", "b"), LinkWeather)


# --- arrival ----------------------------------------------------------------------------------------------------

seconds = st.floats(0, 2)
weathers = st.builds(LinkWeather, seconds, seconds, st.floats(100, 1e9) | st.just(math.inf), st.floats(0, 20), seconds)
batches = st.lists(
    st.tuples(seconds, st.lists(st.integers(0, 10_000), min_size=1, max_size=4)), min_size=1, max_size=20
)


@given(weathers, batches, st.integers(), st.floats(100, 1e9) | st.just(math.inf))
def test_arrivals_keep_order_latency_and_bandwidth(
    weather: LinkWeather, sends: list[tuple[float, list[int]]], seed: int, uplink: float
) -> None:
    schedule = Schedule(random.Random(seed), Wire())
    now, last, carried = 0.0, -math.inf, 0
    for pause, sizes in sends:
        now += pause
        arrivals = schedule.due(now, sizes, weather, uplink)
        assert len(arrivals) == len(sizes)
        for size, arrival in zip(sizes, arrivals, strict=True):
            carried += size
            assert arrival >= last
            assert arrival >= now + weather.latency_s
            slowest = min(weather.bandwidth_bytes_s, uplink)
            assert arrival >= sends[0][0] + carried / slowest + weather.latency_s - 1e-6
            last = arrival
        assert schedule.free_at() <= last


@given(batches, seconds)
def test_nothing_but_latency_is_exactly_that(sends: list[tuple[float, list[int]]], latency_s: float) -> None:
    schedule = Schedule(random.Random(0), Wire())
    now = 0.0
    for pause, sizes in sends:
        now += pause
        assert schedule.due(now, sizes, LinkWeather(latency_s), math.inf) == [now + latency_s] * len(sizes)


@given(batches, st.floats(0.1, 50), seconds, st.integers())
def test_a_stall_lasts_at_most_its_length(
    sends: list[tuple[float, list[int]]], stalls_per_s: float, stall_s: float, seed: int
) -> None:
    schedule = Schedule(random.Random(seed), Wire())
    weather = LinkWeather(stalls_per_s=stalls_per_s, stall_s=stall_s)
    now = 0.0
    for pause, sizes in sends:
        now += pause
        assert all(now <= at <= now + stall_s + 1e-9 for at in schedule.due(now, sizes, weather, math.inf))


def test_the_same_seed_gives_the_same_arrivals() -> None:
    weather = LinkWeather(jitter_s=1.0, stalls_per_s=1.0, stall_s=1.0)
    one, two = (Schedule(random.Random("7/a/b"), Wire()) for _ in range(2))
    for step in range(50):
        assert one.due(step / 10, [1], weather, math.inf) == two.due(step / 10, [1], weather, math.inf)
