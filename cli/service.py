"""`paceline service`: a command of Paceline as a systemd service of this user, started with the machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.console import console
from paceline.wire.errors import InvalidRequest

app = typer.Typer(help="Run a node or gateway as a systemd service.", no_args_is_help=True)
COMMANDS = ("node", "gateway", "bootstrap")

UNIT = """\
[Unit]
Description=Paceline {name}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={command}
Restart=on-failure
RestartSec=5
KillSignal=SIGTERM
TimeoutStopSec=30
NoNewPrivileges=true
PrivateTmp=true

[Install]
WantedBy=default.target
"""

Folder = Annotated[Path | None, typer.Option(help="Where units lie; the user's own, where left out.")]


def unit_folder(folder: Path | None) -> Path:
    """Of this user's units."""
    return folder or Path.home() / ".config" / "systemd" / "user"


def unit(name: str, arguments: list[str]) -> str:
    """The unit's text. Raises InvalidRequest for commands that are no services."""
    if not arguments or arguments[0] not in COMMANDS:
        given = arguments[0] if arguments else "nothing"
        raise InvalidRequest(f"{given} is no service", cure=f"one of: {', '.join(COMMANDS)}, then its options")
    words = [sys.executable, "-m", "paceline.cli", *arguments]
    return UNIT.format(name=name, command=" ".join(map(_quoted, words)))


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(c in escaped for c in " \"'\\;") else escaped


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def install(
    context: typer.Context,
    command: Annotated[str, typer.Argument(help="node, gateway or bootstrap; its own options follow.")],
    name: Annotated[str, typer.Option(help="Name of the service.")] = "paceline",
    folder: Folder = None,
) -> None:
    """Write the unit, and say how to start it. Example: paceline service install node --span 1/3 --swarm …"""
    path = unit_folder(folder) / f"{name}.service"
    text = unit(name, [command, *context.args])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    console.print(f"wrote {path}", soft_wrap=True)
    if shutil.which("systemctl") is None:
        console.print("[yellow]there is no systemd here[/]: copy the unit to a machine that has it")
    console.print(f"start it: systemctl --user daemon-reload && systemctl --user enable --now {name}", soft_wrap=True)
    console.print("keep it when you log out: loginctl enable-linger")


@app.command()
def uninstall(
    name: Annotated[str, typer.Option(help="Name of the service.")] = "paceline", folder: Folder = None
) -> None:
    """Remove the unit."""
    path = unit_folder(folder) / f"{name}.service"
    if not path.exists():
        raise InvalidRequest(f"no unit {path}", cure="see what there is: systemctl --user list-unit-files")
    path.unlink()
    console.print(f"removed {path}; stop what runs: systemctl --user stop {name}", soft_wrap=True)
