"""`paceline models` and `paceline trust`: what this machine holds, what publishers say of it, and who is believed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from paceline.cli.console import console

Home = Annotated[Path | None, typer.Option(help="Where models lie.", envvar="PACELINE_HOME")]


def models(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Models and revisions on this machine: release number, publisher, and how much of each lies here."""
    from paceline.cli.publish import opened
    from paceline.client.connect import home_folder

    store, releases, identity = opened(home_folder(home))
    rows = _rows(store, releases)
    if as_json:
        json.dump({"publisher": identity.public.hex(), "models": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table("model", "release", "revision", "architecture", "layers", "here", "publisher")
    for row in rows:
        here = f"{row['present'] / 1e6:.0f} of {row['total'] / 1e6:.0f} MB"
        who = "this machine" if row["publisher"] == identity.public.hex() else row["publisher"][:16]
        newest = f"{row['release']}{_note(row)}" if row["release"] else "–"
        revision = row["revision"][:12]
        table.add_row(row["model"], newest, revision, row["architecture"], str(row["layers"]), here, who or "–")
    console.print(table)
    console.print(f"this machine publishes as {identity.public.hex()}", soft_wrap=True)


def _note(row: dict[str, Any]) -> str:
    if row["canary"] is not None:
        return f" (canary, {row['canary']:.0%})"
    return " (newest)" if row["newest"] else ""


def _rows(store: Any, releases: Any) -> list[dict[str, Any]]:
    from paceline.store.releases import verify
    from paceline.wire.errors import ModelNotFound
    from paceline.wire.ids import Revision

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name in releases.names():
        history = [verify(signed) for signed in releases.history(name)]
        full, canary = releases.standing(name)
        for release in history:
            row = {"model": name, "release": release.sequence, "publisher": release.publisher.hex()}
            try:
                size = _size(store, store.manifest(Revision(release.revision)))
            except ModelNotFound:
                size = {"architecture": "?", "layers": 0, "present": 0, "total": 0}
            rows[name, release.revision.hex()] = {
                **row,
                "revision": release.revision.hex(),
                "newest": release == full,
                "canary": release.share if release == canary else None,
                **size,
            }
    for it in store.list():
        key = (it.name, it.manifest.revision.hex())
        unsigned = {
            "model": it.name,
            "release": 0,
            "publisher": "",
            "revision": key[1],
            "newest": False,
            "canary": None,
        }
        rows.setdefault(key, {**unsigned, **_size(store, it.manifest)})
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], -rows[key]["release"]))]


def _size(store: Any, manifest: Any) -> dict[str, Any]:
    blocks = {block.hash: block for block in (*manifest.blocks(), *manifest.texts())}.values()
    present = sum(block.size for block in blocks if store.has(block.digest))
    total = sum(block.size for block in blocks)
    return {
        "architecture": manifest.architecture,
        "layers": len(manifest.layers),
        "present": present,
        "total": total,
    }


def trust(
    key: Annotated[str, typer.Argument(help="A publisher's key: 64 hexadecimal digits. Empty: list.")] = "",
    names: Annotated[str, typer.Option(help="Names that it may publish to: `team/*,other`.")] = "*",
    remove: Annotated[bool, typer.Option(help="No longer believe this publisher.")] = False,
    home: Home = None,
) -> None:
    """Believe a publisher: nodes of this machine then load what it signs, under the names given. Without a key: list.

    This machine's own publisher is always believed by itself, and by nobody else before they are told to.
    """
    from paceline.client.connect import home_folder
    from paceline.store.trust import Rule, read, write

    root = home_folder(home)
    rules = read(root)
    if key:
        rule = Rule.parse(f"{key}={names}")
        rules = [other for other in rules if other.publisher != rule.publisher] + ([] if remove else [rule])
        write(root, rules)
    for rule in rules:
        console.print(f"{rule.publisher.hex()}  {', '.join(rule.names)}", soft_wrap=True)
    if not rules:
        console.print("only this machine's own publisher is believed here")
