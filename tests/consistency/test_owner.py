"""The owner's machine, scripted."""

from __future__ import annotations

from typing import Any

from consistency_making import ABC, E1, REVISION, SESSION, owner_of, route, sent, told

from paceline.consistency.effects import Emit, Ended, NeedRoute
from paceline.consistency.owner import Owner, Phase, farewell
from paceline.consistency.recovery import Tier
from paceline.wire.errors import ContextOverflow, Fenced, NoRoute, SessionLost
from paceline.wire.ids import PeerId
from paceline.wire.messages import (
    CloseStage,
    FencedBy,
    Nack,
    OpenStage,
    Prompt,
    StageError,
    StageOpened,
    TokenEvent,
)

A, B, C, X = (PeerId(name) for name in "abcx")
SHADOWED = route("a", "b", "c", shadows={"b": "s", "a": "t"})


def token(owner: Owner, index: int, value: int = 7, finish: Any = "", sender: PeerId = C, now: float = 1.0) -> Any:
    return owner.handle(sender, TokenEvent(SESSION, owner.epoch, 0, index, value, finish, (0, 0, 0)), now)


def error(owner: Owner, code: str, sender: PeerId, accused: str = "", now: float = 1.0) -> Any:
    return owner.handle(sender, StageError(SESSION, 0, owner.epoch, code, "why", accused), now)


def riding(tokens: int = 2, **kw: Any) -> Owner:
    """An owner on ABC that holds `tokens` generated tokens."""
    owner = owner_of(**kw)
    owner.install(ABC, 0.0)
    for index in range(4, 4 + tokens):
        token(owner, index)
    return owner


def only(effects: Any, kind: type) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


# --- the first epoch --------------------------------------------------------------------------------------------


def test_installing_opens_every_stage_and_feeds_the_head() -> None:
    owner = owner_of()
    effects = owner.install(SHADOWED, 0.0)
    assert told(effects) == ["a", "t", "b", "s", "c", "a", "t"]
    opens = sent(effects, OpenStage)
    assert [(m.index, m.shadow) for m in opens] == [(0, False), (0, True), (1, False), (1, True), (2, False)]
    assert {(m.epoch >> 32, m.epoch & 0xFFFFFFFF, m.known, m.lengths) for m in opens} == {(1, 5, 4, (0, 0, 0))}
    assert sent(effects, Prompt)[0].ids == (1, 2, 3, 4)


def test_tokens_are_emitted_once_and_in_order() -> None:
    owner = riding(0)
    assert only(token(owner, 4), Emit)
    assert token(owner, 4) == []
    assert token(owner, 5, sender=B) == []
    asked = token(owner, 6)
    assert sent(asked) == [Nack(SESSION, 4, owner.epoch, 0, 5)]
    assert token(owner, 7) == []
    assert only(token(owner, 5, value=9), Emit)
    assert owner.log == [1, 2, 3, 4, 7, 9]


def test_a_finish_closes_everything_and_says_which() -> None:
    owner = riding()
    effects = token(owner, 6, finish="stop")
    assert isinstance(effects[0], Emit)
    assert effects[-1] == Ended("stop")
    assert sent(effects, CloseStage) == [CloseStage(SESSION, owner.epoch)] * 3
    assert owner.tick(99.0) == owner.cancel() == owner.install(ABC, 2.0) == []
    assert owner.handle(C, FencedBy(SESSION, owner.epoch + 1), 2.0) == []
    assert owner.next_deadline() == float("inf")


def test_cancel_closes() -> None:
    effects = riding().cancel()
    assert told(effects) == ["a", "b", "c"]
    assert effects[-1] == Ended("cancelled")


def test_old_epochs_have_no_effect() -> None:
    owner = riding()
    old = TokenEvent(SESSION, owner.epoch, 0, 6, 1)
    owner.migrate(route("a", "x", "c"), "straggler", 1.0)
    assert owner.handle(C, old, 1.0) == []
    assert owner.handle(A, StageError(SESSION, 0, old.epoch, "peer_unavailable", "", "c"), 1.0) == []


def test_a_stage_that_missed_its_end_is_told_again() -> None:
    owner = riding()
    old = StageOpened(SESSION, 2, owner.epoch, 5)
    owner.link_lost(B, 1.0)
    owner.install(route("a", "x", "c"), 1.0)
    close = CloseStage(SESSION, owner.epoch)
    assert sent(owner.handle(B, old, 2.0)) == [close]
    assert owner.handle(C, old, 2.0) == []
    owner.cancel()
    assert sent(owner.handle(C, old, 2.0)) == [close]
    assert owner.handle(C, StageOpened(SESSION, 2, owner.epoch + 1, 5), 2.0) == []
    assert farewell(old) == CloseStage(SESSION, old.epoch)
    assert farewell(close) is None


# --- repairs ----------------------------------------------------------------------------------------------------


def test_a_lost_stage_is_replaced_and_survivors_keep_what_they_have() -> None:
    owner = riding()
    assert owner.link_lost(B, 2.0) == [NeedRoute(frozenset({B}), "connection lost")]
    assert owner.phase is Phase.BROKEN
    effects = owner.install(route("a", "x", "c"), 2.0)
    assert told(effects)[0] == "b"
    assert {m.lengths for m in sent(effects, OpenStage)} == {(5, 0, 5)}
    assert [(m.start, m.ids) for m in sent(effects, Prompt)] == [(5, (7,))]
    token(owner, 6, now=2.5)
    done = owner.failovers[0]
    assert (done.index, done.lost, done.tier, done.kept, done.stall_s) == (6, ("b",), Tier.JOURNAL, 2, 0.5)


def test_a_short_journal_falls_to_the_tokens() -> None:
    owner = riding()
    assert only(error(owner, "journal_short", A), NeedRoute) == [NeedRoute(frozenset(), "a journal was short")]
    effects = owner.install(ABC, 2.0)
    assert {m.lengths for m in sent(effects, OpenStage)} == {(0, 0, 0)}
    assert [m.ids for m in sent(effects, Prompt)] == [(1, 2, 3, 4, 7, 7)]


def test_accusations_count_from_riders_about_riders_and_the_first_of_two_is_believed() -> None:
    owner = riding()
    assert error(owner, "peer_unavailable", X, accused="b") == []
    assert error(owner, "peer_unavailable", A, accused="x") == []
    assert error(owner, "context_overflow", X) == []
    assert error(owner, "peer_unavailable", A, accused="b") == [NeedRoute(frozenset({B}), "peer_unavailable: why")]
    assert error(owner, "peer_unavailable", B, accused="a") == []
    owner.route_failed(NoRoute("none"), 1.0)
    assert owner.tick(owner.next_deadline()) == [NeedRoute(frozenset({B}), "peer_unavailable: why")]


def test_an_error_that_no_route_mends_ends_the_session() -> None:
    ended = error(riding(), "context_overflow", B)[-1]
    assert isinstance(ended.error, ContextOverflow)


def test_a_penalised_tail_gets_its_history_and_can_ask_again() -> None:
    owner = riding(repetition_penalty=1.2)
    effects = owner.install(ABC, 2.0)
    assert [(m.layer, m.start, len(m.ids)) for m in sent(effects, Prompt)] == [(4, 0, 6), (0, 5, 1)]
    again = owner.handle(C, Nack(SESSION, 4, owner.epoch, 0, 0), 2.0)
    assert [(m.layer, m.start, len(m.ids)) for m in sent(again)] == [(4, 0, 6)]
    assert [(m.layer, m.start) for m in sent(owner.handle(A, Nack(SESSION, 0, owner.epoch, 0, 3), 2.0))] == [(0, 3)]
    assert owner.handle(A, Nack(SESSION, 0, owner.epoch, 0, 6), 2.0) == []
    assert owner.handle(X, Nack(SESSION, 0, owner.epoch, 0, 3), 2.0) == []


# --- deadlines --------------------------------------------------------------------------------------------------


def test_a_stall_gets_a_new_epoch_without_whoever_did_not_even_open() -> None:
    owner = riding()
    for peer, layer in ((A, 0), (C, 4)):
        owner.handle(peer, StageOpened(SESSION, layer, owner.epoch, 5), 1.0)
    assert owner.tick(owner.next_deadline() - 0.01) == []
    assert owner.tick(owner.next_deadline()) == [NeedRoute(frozenset({B}), "no token before the deadline")]


def test_a_rider_that_never_confirms_is_not_given_the_patience_of_a_slow_ring() -> None:
    owner = riding()
    for _ in range(2):
        now = owner.next_deadline()
        owner.tick(now)
        owner.install(ABC, now)
        for peer, layer in ((A, 0), (B, 2), (C, 4)):
            owner.handle(peer, StageOpened(SESSION, layer, owner.epoch, 5), now)
    owner.install(route("a", "x", "c"), now)
    for peer, layer in ((A, 0), (C, 4)):
        owner.handle(peer, StageOpened(SESSION, layer, owner.epoch, 5), now)
    assert owner.next_deadline() == now + 10.0
    assert owner.tick(now + 10.0) == [NeedRoute(frozenset({X}), "the epoch was not confirmed in time")]
    owner.install(route("a", "x", "c"), now + 10.0)
    owner.handle(A, StageOpened(SESSION, 0, owner.epoch, 5), now)
    owner.handle(X, StageOpened(SESSION, 2, owner.epoch, 0), now)
    owner.handle(C, StageOpened(SESSION, 4, owner.epoch, 5), now)
    assert owner.next_deadline() > now + 10.0


def test_repairs_that_keep_failing_slow_down_and_end_within_the_bound() -> None:
    owner, now, epochs = riding(), 1.0, 0
    while owner.phase is not Phase.ENDED:
        owner.install(ABC, now)
        epochs += 1
        effects = owner.link_lost(B, now)
        while owner.phase is Phase.BROKEN and not only(effects, NeedRoute):
            now = owner.next_deadline()
            effects = owner.tick(now)
    assert only(effects, Ended)
    assert isinstance(effects[-1].error, SessionLost)
    assert now <= 1.0 + 60.0 + 0.05 * 6
    assert epochs < 30


def test_no_route_is_retried_until_the_bound() -> None:
    owner, now, asked = riding(), 1.0, 0
    effects = owner.link_lost(B, now)
    while owner.phase is not Phase.ENDED:
        asked += len(only(effects, NeedRoute))
        owner.route_failed(NoRoute("none"), now)
        now = owner.next_deadline()
        effects = owner.tick(now)
    assert isinstance(effects[-1].error, SessionLost)
    assert now <= 61.5
    assert 50 < asked < 300


def test_a_route_that_is_never_answered_ends_too() -> None:
    owner = riding()
    owner.link_lost(B, 1.0)
    assert isinstance(owner.tick(owner.next_deadline())[-1], Ended | NeedRoute)
    assert isinstance(owner.tick(1.0 + 61.0)[-1], Ended)


def test_without_a_first_route_there_is_no_session() -> None:
    ended = owner_of().route_failed(NoRoute("none"), 0.0)[-1]
    assert isinstance(ended.error, NoRoute)


def test_a_repair_says_nothing_about_the_pace() -> None:
    owner = riding(0)
    for index in range(4, 7):
        token(owner, index, now=10.0 + 0.1 * index)
    owner.link_lost(B, 11.0)
    owner.install(route("a", "x", "c"), 11.0)
    token(owner, 7, now=40.0)
    token(owner, 8, now=40.1)
    assert owner.next_deadline() == 43.1


# --- two owners -------------------------------------------------------------------------------------------------


def test_a_resumed_owner_goes_on_behind_the_known_log() -> None:
    first = riding()
    second = Owner.resume(first.export(), 9, 5.0)
    effects = second.install(ABC, 5.0)
    opens = sent(effects, OpenStage)
    assert opens[0].epoch > first.epoch
    assert (opens[0].known, opens[0].lengths, opens[0].revision) == (6, (5, 5, 5), REVISION)
    assert [(m.start, m.ids) for m in sent(effects, Prompt)] == [(5, (7,))]


def test_the_fenced_owner_ends_typed_and_closes_only_what_is_still_its_own() -> None:
    owner = riding()
    assert owner.handle(B, FencedBy(SESSION, owner.epoch), 1.0) == []
    assert owner.handle(B, FencedBy(SESSION, E1), 1.0) == []
    effects = owner.handle(B, FencedBy(SESSION, owner.epoch + 1), 1.0)
    assert isinstance(effects[-1].error, Fenced)
    assert {m.epoch for m in sent(effects, CloseStage)} == {owner.epoch}


def test_a_complete_log_is_not_generated_past_its_end() -> None:
    full = riding(6, most=10)
    assert Owner.resume(full.export(), 9, 5.0).install(ABC, 5.0)[-1] == Ended("length")
    stopped = riding(2, stop_ids=(7,))
    assert Owner.resume(stopped.export(), 9, 5.0).install(ABC, 5.0)[-1] == Ended("stop")
