"""One precedence: flag, environment, configuration file, default. And what the small commands write and say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from paceline.cli.service import unit
from paceline.cli.settings import config_path, settings
from paceline.cli.top import row
from paceline.wire.errors import InvalidRequest

app = typer.Typer()


@app.callback()
def common() -> None:
    """Makes it a group."""


@app.command()
def node(span: str = "auto") -> None:
    typer.echo(span)


GROUP = typer.main.get_group(app)
Says = Callable[..., str]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Says:
    """What `node` prints under a configuration file, an environment and flags."""

    def run(config: str, env: str | None, *flags: str) -> str:
        (tmp_path / "config.toml").write_text(config)
        monkeypatch.setenv("PACELINE_CONFIG", str(tmp_path / "config.toml"))
        monkeypatch.delenv("PACELINE_NODE_SPAN", raising=False)
        if env is not None:
            monkeypatch.setenv("PACELINE_NODE_SPAN", env)
        given = {"default_map": settings(GROUP), "auto_envvar_prefix": "PACELINE", "standalone_mode": False}
        GROUP.main(["node", *flags], **given)
        return capsys.readouterr().out.strip()

    return run


def test_flag_then_environment_then_file_then_default(says: Says) -> None:
    file = '[node]\nspan = "file"\n'
    assert says(file, "environment", "--span", "flag") == "flag"
    assert says(file, "environment") == "environment"
    assert says(file, None) == "file"
    assert says("", None) == "auto"


@pytest.mark.parametrize("config", ["[node", "[nod]\n", "[node]\nspam = 1\n", "node = 3\n"])
def test_a_misspelt_setting_is_not_silent(says: Says, config: str) -> None:
    with pytest.raises(InvalidRequest):
        says(config, None)


def test_a_file_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(InvalidRequest):
        settings(GROUP)
    monkeypatch.delenv("PACELINE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_path() == tmp_path / "paceline" / "config.toml"
    assert settings(GROUP) == {}


def paceline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paceline.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_real_command_reads_file_and_environment(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[throttle]\nname = "mine"\n')
    where = {"PACELINE_CONFIG": str(tmp_path / "config.toml"), "PACELINE_HOME": str(tmp_path)}
    assert "mine: serves always, at most 50% of the time" in paceline("throttle", "0.5", **where).stderr
    assert "other: paused" in paceline("pause", PACELINE_PAUSE_NAME="other", **where).stderr
    assert (tmp_path / "owner" / "mine.json").exists()
    wrong = paceline("hours", "25:00-01:00", **where)
    assert (wrong.returncode, "cure" in wrong.stderr, "Traceback" in wrong.stderr) == (1, True, False)


def test_completion_is_offered_for_the_shells() -> None:
    for shell in ("bash", "zsh", "fish"):
        script = paceline(_PACELINE_COMPLETE=f"source_{shell}")
        assert "_PACELINE_COMPLETE" in script.stdout, (shell, script.stderr)


def test_a_service_is_a_unit_with_the_command_as_given(tmp_path: Path) -> None:
    done = paceline("service", "install", "--folder", str(tmp_path), "--name", "mine", "node", "--span", "1/3")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "mine.service").read_text()
    assert f"ExecStart={sys.executable} -m paceline.cli node --span 1/3\n" in text
    assert "systemctl --user enable --now mine" in done.stderr
    assert paceline("service", "uninstall", "--folder", str(tmp_path), "--name", "mine").returncode == 0
    assert not list(tmp_path.iterdir())
    assert '"a b%%c"' in unit("x", ["node", "--name", "a b%c"])
    with pytest.raises(InvalidRequest):
        unit("x", ["chat"])


def test_a_row_of_top_tells_rates() -> None:
    engine = {"steps": 10, "works": 25, "positions": 100, "busy_s": 0.5}
    facts = {"agent": "paceline/n", "state": "serving", "sessions": 2, "rtt_s": {"p": 0.002}, "rss_bytes": 4e8}
    node = {"peer": "12D3KooWabcdefgh", "engine": engine, "services": [{"span": "0:4", "kv_free": 9}], **facts}
    earlier = {"steps": 0, "works": 0, "positions": 0, "busy_s": 0.0}
    shown = row(node, earlier, 1.0)
    assert shown[4:7] == ["50%", "100", "2.5"]
    assert "silent" in row({"peer": "12D3KooWabcdefgh", "error": "gone"}, {}, 1.0)[2]
