"""`paceline publish` with canaries: what is signed, what a name means meanwhile, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from paceline.cli.main import app
from paceline.cli.publish import opened
from paceline.store.manifest import Manifest
from paceline.wire.errors import InvalidRequest


class Publisher:
    """A home with two revisions of one model, the older one released."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store, self.releases, _ = opened(home)
        blocks = tuple(self.store.put(bytes([layer])) for layer in range(3))
        self.old = Manifest(
            name="team/chat",
            family="toy",
            architecture="Toy",
            config={},
            dtype="i64",
            hidden=4,
            vocab=16,
            max_context=64,
            layers=blocks,
            embed=blocks[0],
            head=blocks[0],
        )
        self.new = msgspec.structs.replace(self.old, layers=(*blocks[:2], self.store.put(b"another layer")))
        for manifest in (self.old, self.new):
            self.store.put_manifest(manifest, name=False)
        self.publish(self.old.revision.hex())

    def publish(self, *words: str) -> None:
        """Raises what the command raises."""
        done = CliRunner().invoke(app, ["publish", *words, "--home", str(self.home)], terminal_width=100)
        if done.exception is not None:
            raise done.exception

    @property
    def now(self) -> tuple[str, str | None, float | None]:
        """What is for everybody, the canary, and its share, by "old" and "new"."""
        names = {self.old.revision: "old", self.new.revision: "new"}
        full, canary = self.releases.standing("team/chat")
        assert full is not None
        assert self.store.named("team/chat") == full.revision
        return names[full.revision], canary and names[canary.revision], canary and canary.share  # type: ignore[index,return-value]


def test_a_canary_grows_and_is_promoted(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    for share in (0.1, 0.5):
        publisher.publish(publisher.new.revision.hex(), "--canary", str(share))
        assert publisher.now == ("old", "new", share)
    publisher.publish("team/chat", "--promote")
    assert publisher.now == ("new", None, None)
    publisher.publish(publisher.old.revision.hex())
    assert publisher.now == ("old", None, None)


@pytest.mark.parametrize("words", [("--withdraw",), ()])
def test_a_canary_is_taken_back(tmp_path: Path, words: tuple[str, ...]) -> None:
    """By the word, or by publishing again what the name means here."""
    publisher = Publisher(tmp_path)
    publisher.publish(publisher.new.revision.hex(), "--canary", "0.1")
    publisher.publish("team/chat", *words)
    assert publisher.now == ("old", None, None)
    full, _ = publisher.releases.standing("team/chat")
    assert full is not None
    assert (full.sequence, full.parent) == (3, publisher.new.revision)


def test_models_tells_of_the_canary(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    publisher.publish(publisher.new.revision.hex(), "--canary", "0.1")
    told = CliRunner().invoke(app, ["models", "--json", "--home", str(tmp_path)]).stdout
    rows = {row["revision"]: row for row in msgspec.json.decode(told)["models"]}
    assert rows[publisher.new.revision.hex()]["canary"] == 0.1
    assert not rows[publisher.new.revision.hex()]["newest"]
    assert rows[publisher.old.revision.hex()]["newest"]


@pytest.mark.parametrize(
    "words",
    [
        ("NEW", "--canary", "1"),
        ("NEW", "--canary", "0"),
        ("NEW", "--canary", "nan"),
        ("OLD", "--canary", "0.5"),
        ("team/chat", "--promote"),
        ("team/chat", "--withdraw"),
        ("team/chat", "--promote", "--withdraw"),
        ("team/chat", "--promote", "--canary", "0.5"),
        ("team/chat", "--promote", "--name", "other"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    publisher = Publisher(tmp_path)
    known = {"NEW": publisher.new.revision.hex(), "OLD": publisher.old.revision.hex()}
    with pytest.raises(InvalidRequest):
        publisher.publish(*(known.get(word, word) for word in words))
    assert publisher.now == ("old", None, None)
