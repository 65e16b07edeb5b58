"""One precedence for every option of every command: flag, then environment, then configuration file, then default.

An option ``--kv-positions`` of ``paceline node`` is ``PACELINE_NODE_KV_POSITIONS`` in the environment, and
``kv_positions`` in the table ``[node]`` of the file that ``PACELINE_CONFIG`` names, else ``config.toml`` in the user's
configuration folder. A table or name that no command knows is an error: a setting that is misspelt must not be silent.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import platformdirs

from paceline.wire.errors import InvalidRequest

PREFIX = "PACELINE"


class Group(Protocol):
    """A command of commands."""

    @property
    def commands(self) -> Mapping[str, Any]: ...


def config_path() -> Path:
    """The configuration file, whether it is there or not."""
    named = os.environ.get("PACELINE_CONFIG")
    return Path(named) if named else Path(platformdirs.user_config_dir("paceline")) / "config.toml"


def settings(group: Group) -> dict[str, dict[str, Any]]:
    """Defaults by command from the file, checked against `group`. Raises InvalidRequest."""
    path = config_path()
    if not path.exists():
        if "PACELINE_CONFIG" in os.environ:
            raise InvalidRequest(f"no file {path}", cure="PACELINE_CONFIG must name a configuration file")
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path}: {error}", cure="mend it, or move it away") from error
    return {name: _checked(path, group, name, table) for name, table in tables.items()}


def _checked(path: Path, group: Group, name: str, table: Any) -> dict[str, Any]:
    command = group.commands.get(name)
    if command is None or not isinstance(table, Mapping):
        raise InvalidRequest(f"{path}: no command {name!r}", cure=f"tables are: {', '.join(sorted(group.commands))}")
    inner = getattr(command, "commands", {})
    given = {key if key in inner else key.replace("-", "_"): value for key, value in table.items()}
    for name_inside in given.keys() & inner.keys():
        given[name_inside] = _checked(path, command, name_inside, given[name_inside])
    known = {parameter.name for parameter in command.params} | inner.keys()
    if wrong := sorted(given.keys() - known):
        raise InvalidRequest(f"{path}: [{name}] has no option {wrong[0]!r}", cure=f"see paceline {name} --help")
    return given
