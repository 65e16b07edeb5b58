"""`paceline models` and its commands, on a store of this test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from paceline.cli import models
from paceline.cli.publish import opened
from paceline.cli.settings import settings
from paceline.store.errors import InUse
from paceline.store.store import Store
from paceline.wire.errors import InvalidRequest, ModelNotFound
from paceline.wire.ids import Revision
from tests.store.test_collecting import made_of

app = typer.Typer()
app.add_typer(models.app, name="models")
GROUP = typer.main.get_group(app)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three revisions of one name, published one after another; they share one block."""
    store, releases, identity = opened(tmp_path)
    shared = store.put(b"s" * 1000)
    for number in range(3):
        made = made_of([shared, store.put(bytes([number]) * (100 + number))], "team/chat")
        store.put_manifest(made)
        releases.publish(identity, made, 1.0 + number)
    store.lease.close()
    return tmp_path


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.setenv("PACELINE_HOME", str(home))

    def call(*words: str) -> str:
        given = {"default_map": settings(GROUP), "auto_envvar_prefix": "PACELINE", "standalone_mode": False}
        GROUP.main(["models", *words], **given)
        return capsys.readouterr().out

    return call


def rows(run: Callable[..., str]) -> dict[int, Any]:
    return {row["release"]: row for row in json.loads(run("--json"))["models"]}


def test_sizes_and_what_keeps_a_revision(run: Callable[..., str], home: Path) -> None:
    found = rows(run)
    assert [(found[n]["own"], found[n]["shared"], found[n]["present"]) for n in (1, 2, 3)] == [
        (100, 1000, 1100),
        (101, 1000, 1101),
        (102, 1000, 1102),
    ]
    assert [found[n]["made_here"] for n in (1, 2, 3)] == [False, False, True]
    store = Store(home / "store")
    store.lease.hold(Revision(bytes.fromhex(found[1]["revision"])))
    assert rows(run)[1]["in_use"]
    with pytest.raises(InUse):
        run("remove", found[1]["revision"])
    run()


def test_pin_remove_and_collect(run: Callable[..., str]) -> None:
    found = rows(run)
    run("pin", found[2]["revision"][:12])
    with pytest.raises(InUse):
        run("remove", found[2]["revision"][:8])
    run("gc", "--store-gb", "0.0000012", "--dry-run")
    assert rows(run)[1]["present"] == 1100
    run("gc", "--store-gb", "0.0000012")
    left = rows(run)
    assert [left[n]["present"] for n in (1, 2, 3)] == [0, 1101, 1102]
    run("unpin", "team/chat")
    assert not rows(run)[2]["pinned"]
    run("remove", "team/chat")
    assert [row["present"] for row in rows(run).values()] == [0, 0, 0]
    with pytest.raises(ModelNotFound):
        run("pin", "team/chat")


def test_a_quota_from_the_configuration_file(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("[models.gc]\nstore_gb = 0.0000012\n")
    run("gc")
    assert [row["present"] for row in rows(run).values()] == [1102, 0, 0]
    (tmp_path / "config.toml").write_text("[models.gc]\nstore_tb = 1\n")
    with pytest.raises(InvalidRequest, match="store_tb"):
        run("gc")
