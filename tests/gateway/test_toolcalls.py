"""Tool calls are found however the text is cut, and nothing of an answer is lost."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from paceline.gateway.toolcalls import CLOSE, OPEN, Call, ToolCallParser


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    return [*pieces, text[at:]]


def parse(pieces: list[str]) -> list[str | Call]:
    """Parts in order, neighbouring texts joined."""
    parser, found = ToolCallParser(), []
    for piece in pieces:
        found += parser.feed(piece)
    joined: list[str | Call] = []
    for part in found + parser.flush():
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


fragments = st.sampled_from(["a", "<", "<tool", OPEN, CLOSE, '{"name": "f"}', "{", "}", " ", "\n", "tool_call>", "自"])
sizes = st.lists(st.integers(0, 7), max_size=30)


@given(st.lists(fragments, max_size=12).map("".join), sizes)
def test_where_the_text_is_cut_changes_nothing(text: str, at: list[int]) -> None:
    assert parse(cut(text, at)) == parse([text])


@given(st.lists(st.sampled_from(["a", "<", "<tool_call", "{", "}", " ", "é"]), max_size=12).map("".join), sizes)
def test_text_without_calls_comes_through_unchanged(text: str, at: list[int]) -> None:
    assert "".join(part for part in parse(cut(text, at)) if isinstance(part, str)) == text


@given(st.text("ab_", min_size=1), st.dictionaries(st.text(), st.text() | st.integers()), sizes)
def test_calls_are_found(name: str, arguments: dict[str, object], at: list[int]) -> None:
    spelled = json.dumps({"name": name, "arguments": arguments})
    found = parse(cut(f"Let me see.{OPEN}\n{spelled}\n{CLOSE}\n{OPEN}{spelled}{CLOSE}", at))
    assert found[0] == "Let me see."
    calls = found[1:]
    assert len(calls) == 2
    assert all(isinstance(call, Call) and call.name == name for call in calls)
    assert all(json.loads(call.arguments) == arguments for call in calls if isinstance(call, Call))


def test_a_bare_object_is_a_call_and_other_json_is_text() -> None:
    assert parse(['{"name": "now", ', '"parameters": {"zone": "CET"}}']) == [Call("now", '{"zone": "CET"}')]
    assert parse(['{"answer": 42}']) == ['{"answer": 42}']
    assert parse([f"{OPEN}not json{CLOSE} and on"]) == [f"{OPEN}not json{CLOSE} and on"]
    assert parse([f"so {OPEN}", '{"name"']) == [f'so {OPEN}{{"name"']
