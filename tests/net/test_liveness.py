"""Silence and round trips, as arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.net.liveness import Liveness, LivenessConfig

CONFIG = LivenessConfig()
steps = st.lists(st.floats(0.0, 0.3), min_size=1, max_size=60)


@given(before=steps, factor=st.floats(1.0, 10.0))
def test_silence_is_noticed_within_deadline_and_two_ticks(before: list[float], factor: float) -> None:
    config = LivenessConfig(silence_factor=factor)
    live, now = Liveness(config, 0.0), 0.0
    for gap in before:
        now += gap
        live.heard(now)
    began, bound = now, live.deadline_s
    assert config.silence_s <= bound <= config.silence_max_s
    while not live.tick(now):
        now += config.tick_s
        assert now - began <= bound + 2 * config.tick_s + 1e-6
    assert now - began >= bound - 1e-6


@given(stall=st.floats(5.0, 1e6))
def test_own_stall_is_not_the_peers_silence(stall: float) -> None:
    live = Liveness(CONFIG, 0.0)
    live.heard(0.1)
    assert not live.tick(0.1 + stall)
    live.heard(0.1 + stall)
    assert live.quiet_s == 0.0


def test_usual_gaps_stretch_the_deadline_and_are_forgotten() -> None:
    live, now = Liveness(CONFIG, 0.0), 0.0
    for _ in range(20):
        for _ in range(8):
            now += CONFIG.tick_s
            live.tick(now)
        live.heard(now)
    assert live.deadline_s > 5.0
    for _ in range(200):
        now += 0.1
        live.heard(now)
    assert live.deadline_s == CONFIG.silence_s


@given(samples=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=50))
def test_rtt_stays_among_its_samples(samples: list[float]) -> None:
    live, now = Liveness(CONFIG, 0.0), 0.0
    for sample in samples:
        nonce = live.ping(now)
        live.pong(nonce, now + sample)
        live.pong(nonce, now + 99.0)
        now += 20.0
    assert live.rtt_min_s is not None
    assert live.rtt_s is not None
    assert abs(live.rtt_min_s - min(samples)) < 1e-6
    assert min(samples) - 1e-6 <= live.rtt_s <= max(samples) + 1e-6


def test_unanswered_pings_are_bounded_and_strange_pongs_ignored() -> None:
    live = Liveness(CONFIG, 0.0)
    nonces = [live.ping(float(i)) for i in range(1000)]
    live.pong(nonces[0], 1000.0)
    live.pong(123456, 1000.0)
    assert live.rtt_s is None
    live.pong(nonces[-1], 1000.0)
    assert live.rtt_s == 1.0
