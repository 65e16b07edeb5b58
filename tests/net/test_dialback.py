"""The rules of dial-back: only the asker's own address is dialled, bounded, and votes are counted."""

from __future__ import annotations

import random

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from paceline.net import dialback
from paceline.net.dialback import DIAL_S, DialBackDesk, Verdict, choose, plain_host, verdict
from paceline.net.memory_doors import MemoryInternet
from paceline.wire.dialback import Dialed, DialMe
from paceline.wire.errors import Malformed, PeerUnavailable, ProtocolViolation
from paceline.wire.messages import PeerAddress


class Dials:
    """Notes every dial; `there`: the ports where the asker proves its key."""

    def __init__(self, *there: int) -> None:
        self.there = there
        self.made: list[tuple[str, int]] = []

    async def prove(self, kind: str, host: str, port: int, peer: str) -> None:
        self.made.append((host, port))
        await trio.lowlevel.checkpoint()
        if port not in self.there:
            raise PeerUnavailable("refused", peer=peer)


async def test_a_third_party_cannot_be_had_dialled(autojump_clock: object) -> None:
    """The question has no room for an address: whatever is appended to it, the connection's own is dialled."""
    internet = MemoryInternet()
    member = internet.place("member", "8.8.8.8")
    attacker = internet.place("attacker", "6.6.6.6")
    internet.place("victim", "7.7.7.7")
    for more in ((), ("7.7.7.7",), (["/ip4/7.7.7.7/tcp/4001"], "7.7.7.7")):
        question = dialback.decode_question(msgspec.msgpack.encode([1, 4001, 4002, *more]))
        await member.desk.answer(attacker.peer, attacker.outside, question)
    assert {host for _, host, _ in internet.dialled} == {"6.6.6.6"}


@given(st.binary(max_size=80), st.integers(1, 65535))
def test_no_question_leads_anywhere_else(garbage: bytes, port: int) -> None:
    dials = Dials()
    desk = DialBackDesk(dials.prove, dial_s=0.0)
    for data in (garbage, msgspec.msgpack.encode([1, port, garbage])):
        try:
            trio.run(desk.answer, "asker", "6.6.6.6", dialback.decode_question(data))
        except Malformed:
            continue
    assert {host for host, _ in dials.made} <= {"6.6.6.6"}
    assert len(dials.made) <= 4


async def test_what_fails_is_told_when_the_time_is_up(autojump_clock: object) -> None:
    dials = Dials(4001)
    desk = DialBackDesk(dials.prove)
    assert await desk.answer("asker", "6.6.6.6", DialMe(4001)) == Dialed("6.6.6.6", control=True)
    assert trio.current_time() < 0.1
    assert await desk.answer("asker", "6.6.6.6", DialMe(4001, 4002)) == Dialed("6.6.6.6", control=True)
    assert trio.current_time() == pytest.approx(DIAL_S)


async def test_questions_are_bounded_for_a_peer_an_address_and_in_all(autojump_clock: object) -> None:
    dials = Dials(4001)
    desk = DialBackDesk(dials.prove)
    said = [(await desk.answer("asker", "6.6.6.6", DialMe(4001))).refused for _ in range(6)]
    assert said == ["", "", "", "", "too_often", "too_often"]
    await trio.sleep(15)
    assert (await desk.answer("asker", "6.6.6.6", DialMe(4001))).refused == ""
    crowd = [(await desk.answer(f"identity {n}", "6.6.6.6", DialMe(4001))).refused for n in range(100)]
    assert crowd.count("") <= dialback.HOST_BURST
    before = len(dials.made)
    async with trio.open_nursery() as nursery:
        for n in range(3 * dialback.MAX_DIALS):
            nursery.start_soon(desk.answer, f"other {n}", f"5.5.5.{n}", DialMe(4002))
    assert len(dials.made) - before == dialback.MAX_DIALS
    assert desk.counts["dial_backs_busy"] == 2 * dialback.MAX_DIALS


@pytest.mark.parametrize("host", [None, "", "example.org", "224.0.0.1", "0.0.0.0", "::", "8.8.8.8/24"])
async def test_without_an_address_nothing_is_dialled(autojump_clock: object, host: str | None) -> None:
    dials = Dials(4001)
    desk = DialBackDesk(dials.prove)
    assert await desk.answer("asker", host, DialMe(4001, 4002)) == Dialed(refused="no_address")
    assert await desk.answer("asker", "6.6.6.6", DialMe()) == Dialed(refused="no_port")
    assert dials.made == []


@given(st.binary(max_size=700))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    for decode in (dialback.decode_question, dialback.decode_answer):
        try:
            decode(data)
        except ProtocolViolation:
            continue


def test_the_bytes_stay() -> None:
    assert dialback.encode(DialMe(4001, 4002)).hex() == "9301cd0fa1cd0fa2"
    assert dialback.encode(Dialed("9.9.9.9", True, False, "busy")).hex() == "9502a7392e392e392e39c3c2a462757379"
    assert dialback.decode_question(bytes.fromhex("9301cd0fa1cd0fa2")) == DialMe(4001, 4002)


VOTES = st.lists(st.none() | st.builds(Dialed, st.just("9.9.9.9"), st.booleans(), st.booleans()), max_size=3)


@given(VOTES)
def test_the_majority_of_those_who_answered_decides(answers: list[Dialed | None]) -> None:
    found = verdict(DialMe(1, 0), answers)
    told = [it.control for it in answers if it is not None]
    yes, no = told.count(True), told.count(False)
    assert found.control is (None if yes == no else yes > no)
    assert (found.data, found.asked, found.answered) == (None, len(answers), len(told))
    assert verdict(DialMe(1, 0), [*answers, None, Dialed(refused="busy")]).control == found.control


def test_where_somebody_was_reached_is_counted() -> None:
    answers = [Dialed("9.9.9.9", True), Dialed("::ffff:9.9.9.9", True), Dialed("6.6.6.6", True), Dialed("7.7.7.7")]
    assert verdict(DialMe(1), answers) == Verdict(True, None, (("9.9.9.9", 2), ("6.6.6.6", 1)), 4, 4)
    assert plain_host("::ffff:9.9.9.9") == "9.9.9.9"


def at(peer: str, *addresses: str) -> PeerAddress:
    return PeerAddress(peer, addresses)


def test_who_stands_outside_is_asked_first_and_no_host_twice() -> None:
    inside = [at(f"in {n}", f"/ip4/192.168.1.{n}/tcp/1") for n in range(1, 5)]
    one_host = [at(f"sybil {n}", f"/ip4/6.6.6.6/tcp/{n + 1}") for n in range(50)]
    outside = [at("a", "/ip4/9.9.9.1/tcp/1"), at("b", "/dns/example.org/tcp/1")]
    relayed = at("relayed", "/ip4/9.9.9.1/tcp/1/p2p/x/p2p-circuit")
    for seed in range(20):
        rng = random.Random(seed)
        assert len(choose(inside, rng)) == 3
        chosen = {it.peer for it in choose([*inside, relayed, *one_host, *outside], rng)}
        assert {"a", "b"} < chosen
        assert len(chosen) == 3
        assert "relayed" not in chosen
    assert choose([relayed], random.Random(0)) == []
