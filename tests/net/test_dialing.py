"""Addresses as text, their order, and racing them, in virtual time."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from paceline.net.dialing import STAGGER_S, AddressBook, Attempt, first_of, format_tcp, parse_tcp, reachable_hosts
from paceline.wire.errors import PeerUnavailable, ProtocolViolation


@given(
    text=st.text(max_size=80)
    | st.builds("/{}/{}/tcp/{}".format, st.sampled_from(["ip4", "ip6", "dns"]), st.text(), st.text())
)
def test_any_text_is_an_address_or_a_violation(text: str) -> None:
    try:
        host, port = parse_tcp(text)
    except ProtocolViolation:
        return
    assert host
    assert 0 < port < 65_536


@given(host=st.ip_addresses().map(str) | st.just("node.example"), port=st.integers(1, 65_535))
def test_formatting_and_parsing_are_inverse(host: str, port: int) -> None:
    assert parse_tcp(format_tcp(host, port)) == (host, port)
    assert parse_tcp(format_tcp(host, port) + "/p2p/12D3Koo") == (host, port)


def test_a_wildcard_is_never_told_to_others() -> None:
    assert reachable_hosts("127.0.0.1") == ("127.0.0.1",)
    for wildcard in ("0.0.0.0", "::"):
        assert reachable_hosts(wildcard)
        assert not {"0.0.0.0", "::"} & set(reachable_hosts(wildcard))


def test_who_failed_lately_is_tried_last_and_forgiven() -> None:
    now = 0.0
    book = AddressBook(lambda: now)
    book.failed("a")
    assert book.order(["a", "b", "a"]) == ["b", "a"]
    now = 1.5
    assert book.order(["a", "b"]) == ["a", "b"]
    book.failed("a")
    now = 3.0
    assert book.order(["a", "b"]) == ["b", "a"], "twice as long the second time"
    book.worked("a")
    assert book.order(["a", "b"]) == ["a", "b"]


class Tries:
    """Attempts that end as told, and what became of their results."""

    def __init__(self) -> None:
        self.started: list[tuple[str, float]] = []
        self.discarded: list[str] = []
        self.book = AddressBook(trio.current_time)

    async def race(self, **ends: tuple[float, bool]) -> str:
        """`ends`: name → (seconds, success)."""

        async def one(name: str) -> str:
            self.started.append((name, trio.current_time()))
            seconds, success = ends[name]
            await trio.sleep(seconds)
            if not success:
                raise PeerUnavailable(f"{name} refused")
            return name

        async def discard(result: str) -> None:
            self.discarded.append(result)
            await trio.lowlevel.checkpoint()

        attempts = [Attempt(name, partial(one, name)) for name in ends]
        return await first_of(attempts, self.book, discard, peer="p")


async def test_a_failure_starts_the_next_at_once(autojump_clock: MockClock) -> None:
    tries, start = Tries(), trio.current_time()
    assert await tries.race(a=(0.01, False), b=(0.01, True), c=(0.0, True)) == "b"
    assert [name for name, _ in tries.started] == ["a", "b"]
    assert trio.current_time() - start == pytest.approx(0.02)


async def test_silence_starts_the_next_after_a_while(autojump_clock: MockClock) -> None:
    tries, start = Tries(), trio.current_time()
    assert await tries.race(a=(100, True), b=(0.5, True)) == "b"
    assert trio.current_time() - start == pytest.approx(STAGGER_S + 0.5)


async def test_all_failures_are_named(autojump_clock: MockClock) -> None:
    with pytest.raises(PeerUnavailable, match=r"a: a refused; b: b refused"):
        await Tries().race(a=(0.1, False), b=(0.1, False))
    with pytest.raises(PeerUnavailable, match="no address"):
        await Tries().race()
