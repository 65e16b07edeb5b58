"""A stage's machine, scripted: each test is one short scene with the messages that make it."""

from __future__ import annotations

from consistency_making import (
    ABC,
    E1,
    E2,
    E3,
    OWNER,
    ROW,
    SESSION,
    Bench,
    frame,
    nack,
    next_token,
    opening,
    prompt,
    route,
    rows,
    sent,
    spans,
    told,
)

from paceline.consistency.effects import CropKv, FreeKv, Send, Violation
from paceline.consistency.inputs import Drawn
from paceline.wire.messages import (
    CloseStage,
    FencedBy,
    Frame,
    Nack,
    NextToken,
    OpenStage,
    StageError,
    StageOpened,
    TokenEvent,
)
from paceline.wire.sampling import SamplingParams

PENALTY = SamplingParams(repetition_penalty=1.3)


def head(**kw: object) -> Bench:
    return Bench(opening(0, **kw))  # type: ignore[arg-type]


def middle(journal: int = 1 << 20, **kw: object) -> Bench:
    return Bench(opening(1, **kw), journal)  # type: ignore[arg-type]


def tail(**kw: object) -> Bench:
    return Bench(opening(2, **kw))  # type: ignore[arg-type]


# --- opening, prefill, decode ---------------------------------------------------------------------------------


def test_opening_is_confirmed_to_the_owner() -> None:
    bench = middle()
    assert sent(bench.effects) == [StageOpened(SESSION, 2, E1, 0)]
    assert sent(bench.give(OWNER, opening(1))) == [StageOpened(SESSION, 2, E1, 0)]


def test_a_head_prefills_in_chunks_and_goes_on_with_tokens() -> None:
    bench = head(known=10)
    bench.give(OWNER, prompt(0, *range(10)))
    assert spans(bench.run()) == [(0, 4), (4, 4), (8, 2)]
    assert spans(bench.feed(next_token(10), sender="c")) == [(10, 1)]


def test_a_middle_passes_on_what_it_computed() -> None:
    bench = middle()
    effects = bench.feed(frame(0, 4), frame(4))
    assert spans(effects) == [(0, 4), (4, 1)]
    assert told(effects) == ["c", "c"]
    assert [bytes(e.payload) for e in effects] == [rows(0, 4), rows(4, 1)]
    assert sent(effects)[1].lengths == (0, 0)


def test_a_tail_draws_only_what_the_owner_lacks_and_tells_head_and_owner() -> None:
    bench = tail(known=6)
    assert bench.feed(frame(0, 4, layer=4), sender="b") == []
    effects = bench.feed(frame(4, 2, layer=4), sender="b")
    assert told(effects) == ["a", OWNER]
    assert sent(effects)[0] == NextToken(SESSION, E1, 0, 6, 7)
    assert (sent(effects)[1].index, sent(effects)[1].finish) == (6, "")


def test_a_tail_ends_with_stop_or_length_and_then_tells_no_head() -> None:
    stop = tail(sampling=SamplingParams(stop_ids=(7,)))
    assert [m.finish for m in sent(stop.feed(frame(0, 4, layer=4), sender="b"))] == ["stop"]
    full = tail(most=5)
    assert [m.finish for m in sent(full.feed(frame(0, 4, layer=4), sender="b"))] == ["length"]


def test_a_ring_of_one_sends_its_tokens_to_itself() -> None:
    bench = Bench(opening(0, on=route("a")))
    bench.give(OWNER, prompt(0, 1, 2, 3, 4))
    assert told(bench.run()) == ["a", OWNER]
    assert sent(bench.feed(next_token(4), sender="a"), TokenEvent)[0].index == 5


# --- duplicates, overlaps, gaps -------------------------------------------------------------------------------


def test_duplicates_do_nothing_at_any_moment() -> None:
    bench = middle()
    bench.give("a", frame(0, 4))
    assert bench.give("a", frame(0, 4)) == []
    given = bench.machine.take()
    assert given is not None
    assert bench.give("a", frame(0, 4)) == []
    bench.machine.done(given, rows(0, 4), "f16", None)
    assert bench.give("a", frame(0, 4)) == []
    assert bench.machine.take() is None


def test_of_an_overlap_the_new_part_is_applied() -> None:
    bench = middle()
    bench.feed(frame(0, 3))
    effects = bench.feed(frame(1, 4))
    assert spans(effects) == [(3, 2)]
    assert bytes(effects[0].payload) == rows(3, 2)


def test_a_gap_is_asked_for_once_and_again_after_progress() -> None:
    bench = middle()
    bench.feed(frame(0, 2))
    assert sent(bench.give("a", frame(3))) == [nack(2, layer=0)]
    assert bench.give("a", frame(4)) == []
    bench.feed(frame(2))
    assert sent(bench.give("a", frame(4))) == [nack(3, layer=0)]


def test_a_head_asks_its_owner() -> None:
    bench = head()
    bench.feed(prompt(0, 1, 2, 3, 4), sender=OWNER)
    effects = bench.give("c", next_token(5))
    assert told(effects) == [OWNER]
    assert sent(effects) == [nack(4, layer=0)]


def test_a_nack_is_answered_from_the_journal_in_joined_chunks() -> None:
    bench = middle()
    bench.feed(*(frame(position) for position in range(6)))
    effects = bench.give("c", nack(1))
    assert spans(effects) == [(1, 4), (5, 1)]
    assert bytes(effects[0].payload) == rows(1, 4)
    assert isinstance(bench.give("x", nack(1))[0], Violation)


def test_a_short_journal_is_told_once_for_the_ring() -> None:
    bench = middle(journal=2 * ROW)
    bench.feed(*(frame(position) for position in range(6)))
    effects = bench.give("c", nack(1))
    assert [(m.code, m.accused) for m in sent(effects, StageError)] == [("journal_short", "")]
    assert bench.give("c", nack(1)) == []
    assert bench.machine.journal.nbytes == 2 * ROW


def test_rows_in_hand_need_no_journal() -> None:
    bench = middle(journal=0, lengths=(0, 0, 2))
    effects = bench.feed(frame(0, 4))
    assert spans(effects) == [(2, 2)]
    assert bytes(effects[0].payload) == rows(2, 2)


# --- revisions, strangers -------------------------------------------------------------------------------------


def test_another_revision_is_refused_and_told() -> None:
    bench = middle()
    effects = bench.give("a", frame(0, tag=b"xxxx"))
    assert isinstance(effects[0], Violation)
    assert [(m.code, m.accused) for m in sent(effects)] == [("wrong_revision", "a")]
    assert bench.machine.take() is None
    other = OpenStage(SESSION, b"x" * 32, E2, 0, 1, ABC, (0, 0, 0), 4, 4, 16, SamplingParams())
    assert [m.code for m in sent(bench.give(OWNER, other))] == ["wrong_revision"]
    assert bench.machine.epoch == E1


def test_strangers_do_nothing() -> None:
    bench = middle()
    for sender, message in (
        ("x", frame(0)),
        ("c", frame(0)),
        ("a", prompt(0, 1)),
        ("c", next_token(4)),
        ("x", CloseStage(SESSION, E1)),
        ("a", StageOpened(SESSION, 2, E1, 0)),
    ):
        effects = bench.give(sender, message)
        assert [type(effect) for effect in effects] == [Violation]
    assert bench.give("a", FencedBy(SESSION, E2)) == []
    assert bench.machine.take() is None


def test_a_frame_of_another_width_is_a_violation() -> None:
    bench = middle()
    wide = Frame(SESSION, 2, b"rrrr", E1, 0, 0, 1, "f16", 5)
    assert isinstance(bench.give("a", wide, b"0" * 10)[0], Violation)


# --- epochs -----------------------------------------------------------------------------------------------------


def test_a_newer_epoch_is_held_and_an_older_one_fenced() -> None:
    bench = middle(epoch=E2)
    for sender, message in (("a", frame(0, epoch=E3)), ("c", nack(0, epoch=E3)), (OWNER, prompt(0, 1, epoch=E3))):
        assert bench.give(sender, message) is None
    for sender, message in (
        ("a", frame(0, epoch=E1)),
        ("c", nack(0, epoch=E1)),
        (OWNER, CloseStage(SESSION, E1)),
        (OWNER, opening(1, epoch=E1)),
    ):
        effects = bench.give(sender, message)
        assert [(told(effects), sent(effects))] == [([sender], [FencedBy(SESSION, E2)])]
    assert bench.machine.take() is None
    assert not bench.machine.closed


def test_a_new_epoch_crops_to_what_its_owner_knows_and_sends_from_the_recovery_line() -> None:
    bench = middle()
    bench.feed(frame(0, 4), frame(4), frame(5), frame(6))
    effects = bench.give(OWNER, opening(1, epoch=E2, lengths=(5, 5, 0), known=6))
    assert effects[0] == CropKv(6)
    assert spans(effects) == [(0, 4), (4, 2)]
    assert all(m.epoch == E2 for m in sent(effects))
    assert bench.feed(frame(5, epoch=E2)) == [], "it has that position, and has sent it on"
    assert spans(bench.feed(frame(6, epoch=E2))) == [(6, 1)]


def test_a_survivor_keeps_no_more_than_the_line_where_its_journal_cannot_send_it_on() -> None:
    bench = middle(journal=ROW)
    bench.feed(frame(0, 4), frame(4), frame(5))
    effects = bench.give(OWNER, opening(1, epoch=E2, lengths=(4, 4, 4), known=5))
    assert effects[0] == CropKv(4)
    assert spans(bench.feed(frame(4, epoch=E2))) == [(4, 1)]


def test_work_in_flight_when_an_epoch_comes_is_kept_where_the_owner_knows_it() -> None:
    bench = middle()
    bench.feed(frame(0, 4))
    bench.give("a", frame(4))
    bench.give("a", frame(5))
    given = bench.machine.take()
    assert given is not None
    bench.give(OWNER, opening(1, epoch=E2, lengths=(4, 4, 4), known=5))
    assert bench.give("a", frame(4, epoch=E2)) == [], "a duplicate of what is running"
    bench.give("a", frame(5, epoch=E2))
    assert bench.machine.take() is None, "the engine is still busy with the old work"
    bench.kv = 5
    assert spans(bench.perform(bench.machine.done(given, rows(4, 1), "f16", None))) == [(4, 1)]
    assert spans(bench.run()) == [(5, 1)]


def test_work_in_flight_that_the_owner_does_not_know_belongs_to_the_past() -> None:
    bench = middle()
    bench.feed(frame(0, 4), frame(4))
    bench.give("a", frame(5))
    given = bench.machine.take()
    assert given is not None
    bench.give(OWNER, opening(1, epoch=E2, lengths=(4, 4, 4), known=5))
    bench.give("a", frame(5, epoch=E2))
    assert bench.machine.take() is None, "the engine is still busy with the old work"
    assert bench.machine.done(given, rows(5, 1), "f16", None) == [CropKv(5)]
    assert spans(bench.run()) == [(5, 1)]


def test_a_tail_says_the_token_again_that_the_new_epoch_lacks() -> None:
    bench = tail()
    bench.feed(frame(0, 4, layer=4), frame(4, layer=4), sender="b")
    effects = bench.give(OWNER, opening(2, epoch=E2, lengths=(0, 4, 4), known=5))
    assert told(effects) == [OWNER, OWNER, "a"]
    assert sent(effects)[1:] == [
        TokenEvent(SESSION, E2, 0, 5, 7, "", sent(effects)[1].lengths),
        NextToken(SESSION, E2, 0, 5, 7),
    ]
    assert bench.machine.length == 5
    assert bench.feed(frame(4, epoch=E2, layer=4), sender="b") == []


def test_a_tail_that_is_drawing_when_an_epoch_comes_draws_for_it() -> None:
    bench = tail()
    bench.feed(frame(0, 4, layer=4), sender="b")
    bench.give("b", frame(4, layer=4))
    given = bench.machine.take()
    assert given is not None
    bench.give(OWNER, opening(2, epoch=E2, lengths=(0, 4, 4), known=5))
    effects = bench.machine.done(given, b"", "f16", Drawn(9))
    assert [(m.epoch, m.index, m.token) for m in sent(effects)] == [(E2, 5, 9)] * 2


def test_a_tail_goes_back_to_the_line_where_it_cannot_say_the_token() -> None:
    for fed, sampling in ((5, PENALTY), (6, None)):
        bench = tail()
        bench.feed(frame(0, 4, layer=4), *(frame(at, layer=4) for at in range(4, fed)), sender="b")
        effects = bench.give(OWNER, opening(2, E2, lengths=(4, 4, 4), known=5, sampling=sampling))
        assert effects[0] == CropKv(4)
        assert sent(effects, TokenEvent) == []


def test_the_queue_of_an_old_epoch_is_gone() -> None:
    bench = middle()
    bench.give("a", frame(0, 4))
    bench.give(OWNER, opening(1, epoch=E2))
    assert bench.machine.take() is None
    assert bench.machine.expected == 0


def test_a_restarted_stage_asks_for_all_it_lost() -> None:
    bench = middle(epoch=E2, lengths=(5, 5, 5), known=6)
    assert sent(bench.effects) == [StageOpened(SESSION, 2, E2, 0)]
    assert sent(bench.give("a", frame(5, epoch=E2))) == [nack(0, E2, layer=0)]


def test_two_owners_in_one_process_are_told_apart_by_their_epochs() -> None:
    bench = middle()
    assert FencedBy(SESSION, E2) not in sent(bench.give(OWNER, opening(1, epoch=E2)))  # its own next epoch
    effects = bench.give(OWNER, opening(1, epoch=E3 | 7))
    assert [(told(effects)[0], sent(effects)[0])] == [(OWNER, FencedBy(SESSION, E3 | 7))]


def test_a_second_owner_fences_the_first() -> None:
    bench = middle()
    effects = bench.give("other", opening(1, epoch=E2))
    assert [(told(effects)[0], sent(effects)[0])] == [(OWNER, FencedBy(SESSION, E2))]
    assert sent(bench.give(OWNER, opening(1, epoch=E1))) == [FencedBy(SESSION, E2)]
    assert sent(bench.give("third", opening(1, epoch=E2))) == [FencedBy(SESSION, E2)]
    assert [type(e) for e in bench.give(OWNER, CloseStage(SESSION, E2))] == [Violation]


def test_closing_frees_once() -> None:
    bench = middle()
    bench.feed(frame(0, 4))
    assert bench.give(OWNER, CloseStage(SESSION, E1)) == [FreeKv()]
    assert bench.machine.closed
    assert bench.give(OWNER, CloseStage(SESSION, E1)) == []
    assert bench.give("a", frame(4)) == []
    assert bench.machine.journal.nbytes == 0
    other = middle()
    assert other.give("next owner", CloseStage(SESSION, E2)) == [FreeKv()]


# --- branches ---------------------------------------------------------------------------------------------------


def test_a_rollback_crops_and_the_new_branch_goes_on() -> None:
    bench = middle()
    bench.feed(frame(0, 4), frame(4, 4))
    effects = bench.feed(frame(6, 2, branch=1))
    assert effects[0] == CropKv(6)
    assert spans(effects) == [(6, 2)]
    assert sent(effects, Frame)[0].branch == 1
    assert bench.give("a", frame(8, branch=0)) == []
    assert bench.machine.expected == 8


def test_a_rollback_behind_a_running_work_leaves_it_alone() -> None:
    bench = middle()
    bench.feed(frame(0, 4))
    bench.give("a", frame(4, 2))
    bench.give("a", frame(6, 2))
    given = bench.machine.take()
    assert given is not None
    assert bench.give("a", frame(6, 1, branch=1)) == []
    bench.kv = 6
    assert spans(bench.perform(bench.machine.done(given, rows(4, 2), "f16", None))) == [(4, 2)]
    assert spans(bench.run()) == [(6, 1)]


def test_a_rollback_into_a_running_work_runs_its_first_part_again() -> None:
    bench = middle()
    bench.feed(frame(0, 4))
    bench.give("a", frame(4, 4))
    given = bench.machine.take()
    assert given is not None
    bench.give("a", frame(6, 1, branch=1))
    assert bench.machine.take() is None
    assert bench.machine.done(given, rows(4, 4), "f16", None) == [CropKv(4)]
    effects = bench.run()
    assert spans(effects) == [(4, 2), (6, 1)]
    assert [bytes(e.payload) for e in effects] == [rows(4, 2), rows(6, 1, 1)]


def test_committed_positions_are_never_rolled_back() -> None:
    bench = middle()
    bench.feed(frame(0, 4), frame(4, 4))
    assert [type(e) for e in bench.give("a", frame(3, 2, branch=1))] == [Violation]
    assert bench.machine.length == 8


def test_a_nack_from_an_older_branch_is_answered_from_the_cut() -> None:
    bench = middle()
    bench.feed(frame(0, 4), frame(4, 4), frame(6, 1, branch=1))
    assert spans(bench.give("c", nack(8))) == [(6, 1)]
    assert spans(bench.give("c", nack(5))) == [(5, 2)]


# --- shadows ----------------------------------------------------------------------------------------------------

SHADOWED = route("a", "b", "c", shadows={"b": "s"})


def test_a_standby_receives_and_says_nothing() -> None:
    upstream = Bench(opening(0, on=SHADOWED))
    upstream.give(OWNER, prompt(0, 1, 2, 3, 4))
    assert told(upstream.run()) == ["b", "s"]
    shadow = Bench(opening(1, on=SHADOWED, shadow=True))
    assert sent(shadow.effects) == [StageOpened(SESSION, 2, E1, 0, True)]
    assert shadow.feed(frame(0, 4)) == []
    assert shadow.machine.length == 4
    assert isinstance(shadow.give("c", nack(0))[0], Violation)


def test_a_promoted_standby_goes_on_and_serves_its_journal() -> None:
    shadow = Bench(opening(1, on=SHADOWED, shadow=True))
    shadow.feed(frame(0, 4), frame(4))
    promoted = route("a", "s", "c")
    effects = shadow.give(OWNER, opening(1, E2, promoted, (4, 4, 4), known=5))
    assert spans(effects) == [(4, 1)]
    assert shadow.feed(frame(4, epoch=E2)) == []
    assert spans(shadow.give("c", nack(0, E2))) == [(0, 4), (4, 1)]


def test_a_lagging_standby_asks_for_its_lag() -> None:
    shadow = Bench(opening(1, on=SHADOWED, shadow=True))
    shadow.feed(frame(0, 2))
    shadow.give(OWNER, opening(1, E2, route("a", "s", "c"), (4, 4, 4), known=5))
    assert sent(shadow.give("a", frame(4, epoch=E2))) == [nack(2, E2, layer=0)]


def test_a_standby_that_lags_behind_the_journal_is_left_behind_and_breaks_nothing() -> None:
    bench = Bench(opening(0, on=SHADOWED), journal=2 * ROW)
    bench.feed(prompt(0, 1, 2, 3, 4), sender=OWNER)
    bench.feed(next_token(4), next_token(5), sender="c")
    assert bench.give("s", nack(0, layer=0)) == []
    assert told(bench.feed(next_token(6), sender="c")) == ["b"]
    assert spans(bench.give("s", nack(6, layer=0))) == [(6, 1)]


def test_the_tail_tells_a_standby_of_the_head_too() -> None:
    on = route("a", "b", "c", shadows={"a": "s"})
    bench = Bench(opening(2, on=on))
    assert told(bench.feed(frame(0, 4, layer=4), sender="b")) == ["a", "s", OWNER]


def test_a_standby_of_the_tail_draws_nothing() -> None:
    bench = Bench(opening(2, on=route("a", "b", "c", shadows={"c": "s"}), shadow=True))
    assert bench.feed(frame(0, 4, layer=4), sender="b") == []


# --- the owner's link, and the tail's memory ------------------------------------------------------------------


def test_a_tail_without_its_owner_withholds_the_next_token() -> None:
    bench = tail()
    assert bench.machine.link_lost(OWNER) == []
    assert bench.machine.orphan
    assert told(bench.feed(frame(0, 4, layer=4), sender="b")) == [OWNER]
    effects = bench.give(OWNER, nack(4))
    assert told(effects) == [OWNER, "a"]
    assert not bench.machine.orphan
    assert told(bench.give(OWNER, nack(4))) == [OWNER]


def test_a_link_that_comes_back_releases_the_token() -> None:
    bench = tail()
    bench.machine.link_lost(OWNER)
    bench.feed(frame(0, 4, layer=4), sender="b")
    effects = bench.machine.link_up(OWNER)
    assert [type(m) for m in sent(effects)] == [StageOpened, TokenEvent, NextToken]
    assert told(effects) == [OWNER, OWNER, "a"]
    assert bench.machine.link_up(OWNER) == []


def test_events_are_resent_from_where_the_owner_asks() -> None:
    bench = tail()
    bench.feed(frame(0, 4, layer=4), frame(4, layer=4), frame(5, layer=4), sender="b")
    assert [m.index for m in sent(bench.give(OWNER, nack(5)))] == [5, 6]
    assert [m.index for m in sent(bench.give("a", nack(6)))] == [6]
    assert bench.give("a", nack(5)) == []
    assert bench.give("b", nack(6)) == []


def test_a_tail_with_penalties_waits_for_the_whole_log() -> None:
    bench = tail(sampling=PENALTY)
    assert sent(bench.give("b", frame(0, 4, layer=4))) == [nack(0, layer=4)]
    assert bench.machine.take() is None
    assert bench.give("b", frame(0, 4, layer=4)) == []
    bench.give(OWNER, prompt(0, 9, 8, 7, 6, layer=4))
    assert sent(bench.run(5), TokenEvent)[0].index == 4
    assert bench.machine.history == [9, 8, 7, 6, 5]


def test_a_late_copy_of_the_history_undoes_nothing() -> None:
    bench = tail(sampling=PENALTY)
    bench.give(OWNER, prompt(0, 9, 8, 7, 6, layer=4))
    bench.feed(frame(0, 4, layer=4), frame(4, layer=4), sender="b")
    bench.give(OWNER, prompt(0, 9, 8, 7, 6, layer=4))
    assert bench.machine.history == [9, 8, 7, 6, 7, 7]
    bench.give(OWNER, opening(2, E2, lengths=(4, 4, 4), known=5, sampling=PENALTY))
    assert bench.machine.history == [9, 8, 7, 6, 7, 7], "what the owner knows, and the token said again"


# --- links between stages, and failed work --------------------------------------------------------------------


def test_a_lost_neighbour_is_named_and_asked_when_it_returns() -> None:
    bench = middle()
    bench.feed(frame(0, 4))
    for name in ("a", "c"):
        assert [m.accused for m in sent(bench.machine.link_lost(name))] == [name]  # type: ignore[arg-type]
    assert sent(bench.machine.link_up("a")) == [nack(4, layer=0)]  # type: ignore[arg-type]
    assert bench.machine.link_up("c") == []  # type: ignore[arg-type]
    assert bench.machine.link_lost("x") == []  # type: ignore[arg-type]


def test_a_head_asks_the_tail_when_its_link_returns() -> None:
    bench = head()
    bench.feed(prompt(0, 1, 2, 3, 4), sender=OWNER)
    bench.machine.link_lost("c")  # type: ignore[arg-type]
    effects = bench.machine.link_up("c")  # type: ignore[arg-type]
    assert effects == [Send(ABC[2].at, Nack(SESSION, 4, E1, 0, 4))]


def test_failed_work_accuses_upstream_and_keeps_nothing() -> None:
    bench = middle()
    bench.give("a", frame(0, 4))
    given = bench.machine.take()
    assert given is not None
    effects = bench.machine.failed(given, "non-finite")
    assert effects[0] == CropKv(0)
    assert [(m.code, m.accused) for m in sent(effects)] == [("protocol_violation", "a")]
    assert bench.machine.expected == 0
