"""Uplinks are told by those who receive: within 15 % of what the road carries, and no liar raises them."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from paceline.net.conditioner import ConditionedTransport
from paceline.net.links import Links
from paceline.net.memory import MemoryNetwork
from paceline.net.profiles import ANY, LinkProfile, LinkRow
from paceline.net.uplink import BURST_BYTES, ENOUGH, MOST, REMEMBER_S, Bursts, Uplink
from paceline.wire.ids import PeerId
from paceline.wire.messages import BlockPiece

A, B, C = PeerId("alice"), PeerId("bob"), PeerId("carol")


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (LinkProfile((LinkRow(ANY, ANY, {"latency_s": 0.03, "jitter_s": 0.004}),), 2.5e6, seed=3), 2.5e6),
        (LinkProfile((LinkRow(ANY, ANY, {"bandwidth_bytes_s": 12.5e6, "latency_s": 0.09}),), seed=3), 12.5e6),
        (
            LinkProfile((LinkRow(ANY, ANY, {"stalls_per_s": 0.1, "stall_s": 0.2, "latency_s": 0.012}),), 0.6e6, seed=3),
            0.6e6,
        ),
    ],
)
async def test_what_receivers_say_is_what_the_road_carries(
    autojump_clock: MockClock, profile: LinkProfile, expected: float
) -> None:
    """Large messages among small ones, as prompts come among tokens; only the sender has the profile."""
    network = MemoryNetwork(latency_s=0.0)
    sender = Links(ConditionedTransport(network.transport(A), profile, slack_s=0.0), lambda *message: None)
    others = [network.transport(peer) for peer in (B, C)]
    receivers = [Links(other, lambda *message: None) for other in others]
    async with receivers[0].run(), receivers[1].run(), sender.run():
        assert sender.uplink_bytes_per_s() == 0.0
        for turn in range(12):
            to = others[turn % 2].address
            sender.send(to, BlockPiece(1, 1), bytes(300))
            await trio.sleep(0.7)
            sender.send(to, BlockPiece(1, 1), bytes(2 * BURST_BYTES))
            await trio.sleep(1.5)
        assert sender.uplink_bytes_per_s() == pytest.approx(expected, rel=0.15)
        assert receivers[0].uplink_bytes_per_s() == 0.0, "nothing large was sent back"


@given(st.lists(st.floats(1e5, 1e9), min_size=3, max_size=21), st.floats(0.0, 1e12), st.data())
def test_no_minority_of_liars_raises_it(honest: list[float], lie: float, data: st.DataObject) -> None:
    uplink = Uplink()
    liars = data.draw(st.integers(0, (len(honest) - 1) // 2))
    for at, rate in enumerate(honest):
        uplink.tell(PeerId(f"p{at}"), lie if at < liars else rate, 0.0)
    assert uplink.bytes_per_s(1.0) <= max(honest[liars:])


def test_of_two_the_lower_counts_and_what_is_old_does_not() -> None:
    uplink = Uplink()
    assert uplink.bytes_per_s(0.0) == 0.0
    uplink.tell(B, 5e6, 0.0)
    uplink.tell(C, 1e11, 1.0)
    uplink.tell(C, 0.0, 2.0)
    assert uplink.bytes_per_s(3.0) == 5e6
    assert uplink.bytes_per_s(REMEMBER_S + 0.5) == 1e11
    assert uplink.bytes_per_s(2 * REMEMBER_S) == 0.0
    for at in range(2 * MOST):
        uplink.tell(PeerId(f"p{at}"), 1e6, 0.0)
    assert uplink.bytes_per_s(1.0) == 1e6


def test_bursts_that_tell_nothing_are_no_samples() -> None:
    bursts, heard = Bursts(), 0
    for turn in range(2 * ENOUGH):
        bursts.message(BURST_BYTES, float(turn), heard)  # no mark
        bursts.mark(BURST_BYTES, float(turn), heard)
        heard += BURST_BYTES
        bursts.message(BURST_BYTES, float(turn), heard)  # read all at once
        bursts.mark(BURST_BYTES, float(turn), heard)
        bursts.message(BURST_BYTES, turn + 0.5, heard + 9)  # the mark was read with all of its burst
    assert bursts.bytes_per_s == 0.0
    for turn in range(ENOUGH):
        bursts.mark(BURST_BYTES, float(turn), heard)
        heard += BURST_BYTES
        bursts.message(BURST_BYTES // 2, turn + 0.01, heard - BURST_BYTES // 2)
        bursts.message(BURST_BYTES // 2, turn + 0.1, heard)
    assert bursts.bytes_per_s == pytest.approx(10 * BURST_BYTES)
