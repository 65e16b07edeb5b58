"""A piece that is only text is encoded with a hole: the same bytes as the whole record."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from paceline.client.results import Piece
from paceline.gateway.chat_writer import ChatWriter
from paceline.gateway.replies import ChatChunk, TextCompletion
from paceline.gateway.text_writer import TextWriter
from paceline.gateway.writers import Head, Writer

HEAD = Head(id="x", created=1, model='a "model"', fingerprint="fp")
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2)


def sent(writer: Writer, choice: int, texts: list[str], record: type[Struct]) -> list[Struct]:
    """What a client reads. Each event is what its record encodes to."""
    made = [event for index, text in enumerate(texts) for event in writer.piece(choice, Piece(index, 0, text), None)]
    found = [msgspec.json.encode(event.body) for event in made]
    read = [msgspec.json.decode(each, type=record) for each in found]
    assert [msgspec.json.encode(each) for each in read] == found
    return read


@given(TEXTS, st.integers(0, 2), st.booleans())
def test_chat(texts: list[str], choice: int, with_usage: bool) -> None:
    writer = ChatWriter(HEAD, 3, logprobs=False, tools=False, with_usage=with_usage)
    choices = [chunk.choices[0] for chunk in sent(writer, choice, texts, ChatChunk) if isinstance(chunk, ChatChunk)]
    assert [(each.index, each.delta.content) for each in choices] == [(choice, text) for text in texts]


@given(TEXTS, st.integers(0, 2), st.booleans())
def test_text(texts: list[str], choice: int, with_usage: bool) -> None:
    writer = TextWriter(HEAD, ["", "echo", ""], prompts=3, logprobs=None, with_usage=with_usage)
    chunks = sent(writer, choice, texts, TextCompletion)
    choices = [chunk.choices[0] for chunk in chunks if isinstance(chunk, TextCompletion)]
    assert [(each.index, each.text) for each in choices] == [(choice, text) for text in texts]
