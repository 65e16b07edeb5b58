"""Whom a swarm believes: its publishers' keys, and the names that each may publish to. Nothing else is loaded.

Kept as ``trust.json`` beside the store: ``{"publishers": [{"key": "<64 hex>", "names": ["team-a/*"]}]}``. Knows rules
and a file; no signature, no network.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from paceline.wire.errors import InvalidRequest, UnauthorisedPublisher
from paceline.wire.releases import Release

FILE = "trust.json"


@dataclass(frozen=True, slots=True)
class Rule:
    """One publisher (a 32-byte Ed25519 public key), and the patterns (``*``, ``?``) of names that it may publish to."""

    publisher: bytes
    names: tuple[str, ...] = ("*",)

    @classmethod
    def parse(cls, text: str) -> Rule:
        """``KEY`` or ``KEY=name,other-*``. Raises InvalidRequest."""
        key, _, names = text.partition("=")
        try:
            publisher = bytes.fromhex(key.strip())
        except ValueError:
            publisher = b""
        if len(publisher) != 32:
            raise InvalidRequest(f"{key!r} is no publisher's key", cure="it has 64 hexadecimal digits: paceline models")
        return cls(publisher, tuple(part.strip() for part in names.split(",") if part.strip()) or ("*",))


@dataclass(frozen=True, slots=True)
class Trust:
    """`revisions`: those that the program itself names by their hash (the default model)."""

    rules: tuple[Rule, ...] = ()
    revisions: frozenset[bytes] = frozenset()

    def allows(self, release: Release) -> bool:
        """Whether the release's publisher may publish to its name."""
        return any(
            rule.publisher == release.publisher and any(fnmatchcase(release.name, name) for name in rule.names)
            for rule in self.rules
        )

    def builtin(self, revision: bytes) -> bool:
        """Whether the revision needs no publisher."""
        return revision in self.revisions

    def check(self, release: Release) -> None:
        """Raises UnauthorisedPublisher."""
        if self.allows(release):
            return
        key = release.publisher.hex()
        known = any(rule.publisher == release.publisher for rule in self.rules)
        why = f"may not publish to {release.name!r}" if known else "is not trusted here"
        raise UnauthorisedPublisher(f"publisher {key[:16]}… {why}", cure=f"if you trust it: paceline trust {key}")

    def plus(self, *rules: Rule) -> Trust:
        """With more rules."""
        return Trust((*self.rules, *(rule for rule in rules if rule not in self.rules)), self.revisions)


def load(home: Path, *, own: bytes | None = None, more: Iterable[str] = (), revisions: Iterable[bytes] = ()) -> Trust:
    """The trust of a home folder. `own`: this machine's publisher, trusted by itself. `more`: as `Rule.parse`.

    Raises InvalidRequest for a file that cannot be understood.
    """
    mine = () if own is None else (Rule(own),)
    return Trust(tuple(read(home)), frozenset(revisions)).plus(*mine, *map(Rule.parse, more))


def read(home: Path) -> list[Rule]:
    """The rules in the file, none where there is no file. Raises InvalidRequest."""
    path = home / FILE
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())["publishers"]
        return [Rule.parse(f"{entry['key']}={','.join(entry.get('names', ['*']))}") for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"{path} is not a list of publishers: {error}", cure="mend it, or remove it") from error


def write(home: Path, rules: Iterable[Rule]) -> None:
    """Replace the file, whole or not at all."""
    home.mkdir(parents=True, exist_ok=True)
    entries = [{"key": rule.publisher.hex(), "names": list(rule.names)} for rule in rules]
    handle, draft = tempfile.mkstemp(dir=home, prefix=f".{FILE}.")
    with os.fdopen(handle, "w") as file:
        json.dump({"publishers": entries}, file, indent=2)
        file.write("\n")
    os.replace(draft, home / FILE)
