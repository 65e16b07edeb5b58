"""Grammars at the tail: the answer is of the form that was asked for, whatever is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline.client.options import json_schema, lark
from paceline.node.grammar import Grammars
from paceline.wire.errors import InvalidRequest, UnsupportedModel
from tests.gateway.toying import EOS, VOCABULARY, byte_level_json, text_swarm
from tests.swarming import options

FIVE = {"type": "array", "items": {"enum": ["red", "green", "blue", 7, True]}, "minItems": 5, "maxItems": 5}
SCHEMA = {
    "type": "object",
    "properties": {"colours": FIVE, "again": FIVE},
    "required": ["colours", "again"],
    "additionalProperties": False,
}


@pytest.fixture
def grammars(tmp_path: Path) -> Grammars:
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json())
    return Grammars(lambda: tmp_path / "tokenizer.json", len(VOCABULARY), (EOS,))


def tokens(bits: bytes) -> list[str]:
    return [word for index, word in enumerate(VOCABULARY) if bits[index >> 3] >> (index & 7) & 1]


def ids(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.index(character) for character in text)


def test_the_state_is_a_function_of_the_answer(grammars: Grammars) -> None:
    text = '{"colours": ["red", 7, "blue"'
    running = grammars.begin(json_schema(SCHEMA))
    one_by_one = [running.allowed(ids(text[:end])) for end in range(len(text) + 1)]
    assert tokens(one_by_one[0]) == ["{"]
    assert tokens(one_by_one[-1]) == [","]
    for end in (len(text), 3, 20, 0):  # a new tail, and one that is rolled back
        assert grammars.begin(json_schema(SCHEMA)).allowed(ids(text[:end])) == one_by_one[end]
        assert running.allowed(ids(text[:end])) == one_by_one[end]


def test_a_complete_answer_can_only_end(grammars: Grammars) -> None:
    state = grammars.begin(lark('start: "yes" | "no"'))
    assert tokens(state.allowed(())) == ["n", "y"]
    assert tokens(state.allowed(ids("yes"))) == [VOCABULARY[EOS]]


def test_what_the_grammar_forbids_is_told_and_allows_nothing(grammars: Grammars) -> None:
    state = grammars.begin(lark('start: "yes"'))
    assert state.allowed(ids("no")) == b""
    assert state.error


@pytest.mark.parametrize(
    "grammar", ["json:{", "json:[]", "json:" + "[" * 30_000, 'json:{"type": "nope"}', "lark:start: (", "xml:", ""]
)
def test_what_is_no_grammar_is_refused(grammars: Grammars, grammar: str) -> None:
    with pytest.raises(InvalidRequest):
        grammars.begin(grammar)


async def test_answers_keep_their_form_when_the_tail_is_lost(tmp_path: Path, autojump_clock: object) -> None:
    """The toy says nonsense, and the grammar makes it valid; a new tail says the same nonsense."""
    asked = options(grammar=json_schema(SCHEMA), max_tokens=300, temperature=1.0, seed=4)
    async with text_swarm(tmp_path) as swarm, swarm.client() as client:
        whole = await client.generate([7, 8, 9], asked)
        while await whole.receive() is not None:
            pass
        value = json.loads(whole.result().text)
        assert [len(value["colours"]), len(value["again"])] == [5, 5]
        assert whole.result().finish_reason == "stop"
        await swarm.node("spare", (8, 12))
        broken = await client.generate([7, 8, 9], asked)
        for _ in range(30):
            await broken.receive()
        swarm.kill(swarm.name_of(broken.result().route[-1].peer))
        while await broken.receive() is not None:
            pass
        assert len(broken.result().failovers) == 1
        assert broken.result().tokens == whole.result().tokens


async def test_a_tail_that_knows_no_grammars_refuses(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path, grammars=False) as swarm, swarm.client() as client:
        stream = await client.generate([7], options(grammar=json_schema(SCHEMA)))
        with pytest.raises(UnsupportedModel, match="grammars"):
            await stream.receive()


async def test_a_bad_grammar_is_the_users_mistake(tmp_path: Path, autojump_clock: object) -> None:
    async with text_swarm(tmp_path) as swarm, swarm.client() as client:
        stream = await client.generate([7], options(grammar='json:{"type": "nope"}'))
        with pytest.raises(InvalidRequest, match="nope"):
            await stream.receive()
