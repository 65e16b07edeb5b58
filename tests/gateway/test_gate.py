"""Keys, quotas and bodies: nobody gets more than the limit, and what is refused says when to come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.gateway.config import ApiKey, GatewayConfig, load_keys
from paceline.gateway.errors import RateLimited
from paceline.gateway.quota import Bucket, Meter
from paceline.wire.errors import InvalidRequest
from tests.gateway.asking import asking
from tests.gateway.toying import text_swarm

ASK = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@given(st.integers(1, 50), st.lists(st.floats(0.0, 5.0), max_size=200))
def test_a_bucket_lets_through_its_capacity_and_its_refill_and_no_more(capacity: int, waits: list[float]) -> None:
    bucket, now, through = Bucket(capacity, 60.0), 0.0, 0
    for wait in waits:
        now += wait
        if bucket.wait_s(1.0, now) == 0:
            bucket.take(1.0, now)
            through += 1
    assert through <= capacity + now * capacity / 60 + 1e-6


@given(st.integers(1, 50), st.floats(0.0, 500.0), st.floats(0.0, 1e6))
def test_who_waits_as_long_as_told_is_let_in(capacity: int, taken: float, now: float) -> None:
    bucket = Bucket(capacity, 60.0)
    bucket.take(taken, now)
    wait = bucket.wait_s(1.0, now)
    assert bucket.wait_s(1.0, now + wait + 1e-3) <= 1e-3


def test_a_meter_counts_tokens_afterwards_and_running_requests_at_once() -> None:
    meter = Meter(ApiKey(name="a", key="k", tokens_per_minute=100, concurrent=2))
    meter.admit(0.0)
    meter.admit(0.0)
    with pytest.raises(RateLimited):
        meter.admit(0.0)
    meter.done(150, 1.0)
    with pytest.raises(RateLimited) as refused:
        meter.admit(1.0)
    meter.admit(1.0 + refused.value.retry_after_s + 0.01)


def test_the_keys_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[[keys]]\nname = "a"\nkey = "s"\n[[keys]]\nname = "b"\nsha256 = "{"0" * 64}"\nconcurrent = 3\n')
    assert [(key.name, key.concurrent) for key in load_keys(path)] == [("a", 0), ("b", 3)]
    for wrong in ("", "keys = 3", '[[keys]]\nname = "a"', '[[keys]]\nname="a"\nkey="k"\n[[keys]]\nname="b"\nkey="k"'):
        path.write_text(wrong)
        with pytest.raises(InvalidRequest, match=r"keys\.toml"):
            load_keys(path)


async def test_without_a_key_nothing_is_told(tmp_path: Path, autojump_clock: object) -> None:
    config = GatewayConfig(keys=(ApiKey(name="a", key="secret", requests_per_minute=2),))
    async with text_swarm(tmp_path) as swarm, asking(swarm, config) as ask:
        for path in ("/v1/models", "/v1/models/toy", "/paceline/swarm", "/metrics", "/paceline/streams/x"):
            assert (await ask.get(path)).status == 401
            assert (await ask.get(path, {"authorization": "Bearer wrong"})).status == 401
        assert (await ask.post("/v1/chat/completions", ASK)).json["error"]["code"] == "invalid_api_key"
        assert (await ask.get("/healthz")).status == (await ask.get("/")).status == 200
        key = {"authorization": "Bearer secret"}
        assert [(await ask.post("/v1/chat/completions", ASK, key)).status for _ in range(2)] == [200, 200]
        refused = await ask.post("/v1/chat/completions", ASK, key)
        assert refused.status == 429
        assert refused.json["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) in range(1, 61)


async def test_bodies_are_bounded_and_must_be_json(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, asking(swarm, GatewayConfig(max_body_bytes=1000)) as ask:
        large = ASK | {"messages": [{"role": "user", "content": "x" * 1000}]}
        assert (await ask.post("/v1/chat/completions", large)).status == 413
        typed = await ask.post("/v1/chat/completions", ASK, {"content-type": "text/plain"})
        assert typed.status == 415
        for body in (b"", b"{", b"[]", b"\xff", b"[" * 900, b'{"model": "toy"}'):
            assert (await ask.post("/v1/chat/completions", body)).status == 400
