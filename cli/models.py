"""`paceline models` and `paceline trust`: what this machine holds, what publishers say of it, and who is believed."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from paceline.cli import keeping
from paceline.cli.console import console

if TYPE_CHECKING:
    from paceline.store.collecting import Survey
    from paceline.store.releases import Releases
    from paceline.store.store import Store


app = typer.Typer(invoke_without_command=True)
app.command("remove")(keeping.remove)
app.command("pin")(keeping.pin)
app.command("unpin")(keeping.unpin)
app.command("gc")(keeping.gc)


@app.callback()
def models(
    context: typer.Context,
    home: keeping.Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Models and revisions on this machine: release, how much of each is here, last use, what keeps it, publisher.

    Revisions share blocks: `own` is what no other has, so what is freed with one. Kept is what is pinned, what a
    process of this machine serves or follows, and what was published here under the name last.

    `paceline models gc --help` says what goes when room is short, and `pin`, `unpin` and `remove` how to decide it.
    """
    if context.invoked_subcommand is not None:
        return
    from paceline.cli.publish import opened
    from paceline.client.connect import home_folder

    store, releases, identity = opened(home_folder(home))
    rows = _rows(store, releases)
    if as_json:
        json.dump({"publisher": identity.public.hex(), "models": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table("model", "release", "revision", "here, MB", "own", "used", "kept by", "publisher")
    table.columns[2].no_wrap = True
    for row in rows:
        who = "this machine" if row["publisher"] == identity.public.hex() else row["publisher"][:16]
        newest = f"{row['release']}{_note(row)}" if row["release"] else "–"
        here = f"{row['present'] / 1e6:.0f} of {row['total'] / 1e6:.0f}"
        reasons = {"a pin": row["pinned"], "a process": row["in_use"], "its maker": row["made_here"]}
        kept = ", ".join(reason for reason, holds in reasons.items() if holds)
        cells = [row["model"], newest, row["revision"][:12], here, f"{row['own'] / 1e6:.0f}", _ago(row["used_at"])]
        table.add_row(*cells, kept or "–", who or "–")
    console.print(table)
    console.print(f"this machine publishes as {identity.public.hex()}", soft_wrap=True)


def _note(row: dict[str, Any]) -> str:
    if row["canary"] is not None:
        return f" (canary, {row['canary']:.0%})"
    return " (newest)" if row["newest"] else ""


def _ago(at: float) -> str:
    """Unix seconds, as people say it."""
    if not at:
        return "–"
    past = max(0.0, time.time() - at)
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if past >= seconds:
            return f"{past / seconds:.0f} {unit} ago"
    return "now"


def _rows(store: Store, releases: Releases) -> list[dict[str, Any]]:
    """One for each revision that a release names or that is here."""
    from paceline.store.collecting import survey
    from paceline.store.releases import verify
    from paceline.wire.ids import Revision

    found = survey(store.root)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name in releases.names():
        history = [verify(signed) for signed in releases.history(name)]
        full, canary = releases.standing(name)
        for release in history:
            row = {"model": name, "release": release.sequence, "publisher": release.publisher.hex()}
            facts = _facts(store, found, Revision(release.revision).hex())
            stands = {"newest": release == full, "canary": release.share if release == canary else None}
            rows[name, release.revision.hex()] = {**row, **stands, **facts}
    named = {(it.name, it.manifest.revision.hex()) for it in store.list()}
    released = {revision for _, revision in rows}
    rest = {(it.name, revision) for revision, it in found.manifests.items() if revision not in released}
    for name, revision in named | rest:
        row = {"model": name, "release": 0, "publisher": "", "newest": False, "canary": None}
        rows.setdefault((name, revision), {**row, **_facts(store, found, revision)})
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], -rows[key]["release"]))]


def _facts(store: Store, found: Survey, revision: str) -> dict[str, Any]:
    """What this machine has of a revision, in bytes, and why it keeps it."""
    from paceline.store.room import shares

    manifest = found.manifests.get(revision)
    if manifest is None:
        nothing = dict.fromkeys(("layers", "present", "total", "own", "shared", "used_at"), 0)
        flags = dict.fromkeys(("pinned", "in_use", "made_here"), False)
        return {"revision": revision, "architecture": "?", **nothing, **flags}
    blocks = {block.hash: block for block in (*manifest.blocks(), *manifest.texts())}.values()
    resident = next(it for it in found.contents.residents if it.revision == revision)
    own, shared = shares(found.contents)[revision]
    return {
        "revision": revision,
        "architecture": manifest.architecture,
        "layers": len(manifest.layers),
        "present": sum(block.size for block in blocks if store.has(block.digest)),
        "total": sum(block.size for block in blocks),
        "own": own,
        "shared": shared,
        "used_at": resident.used_at,
        "pinned": revision in found.pinned,
        "in_use": revision in found.users,
        "made_here": revision in found.named,
    }


def trust(
    key: Annotated[str, typer.Argument(help="A publisher's key: 64 hexadecimal digits. Empty: list.")] = "",
    names: Annotated[str, typer.Option(help="Names that it may publish to: `team/*,other`.")] = "*",
    remove: Annotated[bool, typer.Option(help="No longer believe this publisher.")] = False,
    home: keeping.Home = None,
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
