"""What stays in this machine's store and what goes: `paceline models remove`, `pin`, `unpin`, `gc`, and the quota."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.console import console

if TYPE_CHECKING:
    from paceline.store.releases import Releases
    from paceline.store.store import Store

Home = Annotated[Path | None, typer.Option(help="Where models lie.", envvar="PACELINE_HOME")]
StoreGb = Annotated[
    float,
    typer.Option(
        help="Disk for models, all processes of this machine together, in GB; 0: no quota. Where it is reached, "
        "revisions that nobody needs go, those used longest ago first (`paceline models gc`).",
        envvar="PACELINE_STORE_GB",
        min=0,
    ),
]
Which = Annotated[str, typer.Argument(help="A model's name, or a revision: its first digits are enough.")]

_LEAST_DIGITS = 6


def remove(which: Which, home: Home = None) -> None:
    """Remove a revision from this machine, or all revisions of a name. What other revisions share with it stays.

    Refused for what a process of this machine serves, and for what is pinned. What its publisher signed stays known:
    an older release is not taken for the newest later.
    """
    from paceline.store import collecting

    store, releases = _opened(home)
    for revision in _chosen(store, releases, which):
        before = collecting.survey(store.root).contents.used()
        decision = collecting.remove(store.root, revision)
        console.print(f"removed revision {revision[:12]}: {(before - decision.used) / 1e6:.1f} MB", soft_wrap=True)


def pin(which: Which, home: Home = None) -> None:
    """Keep a revision (of a name: the newest that is here), however long nobody uses it."""
    _pin(which, home, wanted=True)


def unpin(which: Which, home: Home = None) -> None:
    """A revision, or all of a name, may go again when room is needed."""
    _pin(which, home, wanted=False)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store_gb: StoreGb = 0.0,
    home: Home = None,
) -> None:
    """Remove blocks that no revision here names; with a quota (`--store-gb`), whole revisions until it is kept, too.

    Revisions go in the order of their last use, and only those that came from peers or that a newer one made here has
    replaced. What is pinned, what a process of this machine serves or follows, and what this machine itself published
    last under a name, stays. It is safe beside nodes that run, and beside `pull` and `publish`.
    """
    from paceline.store import collecting

    store, _ = _opened(home)
    found = collecting.survey(store.root)
    decision = collecting.collect(store.root, int(store_gb * 1e9) or None, dry=dry_run)
    would = "would remove" if dry_run else "removed"
    freed = found.contents.used() - decision.used
    for revision in decision.revisions:
        console.print(f"{would} {found.manifests[revision].name}, revision {revision[:12]}", soft_wrap=True)
    console.print(f"{would} {len(decision.blocks)} blocks, {freed / 1e6:.1f} MB; {decision.used / 1e6:.1f} MB stay")
    if decision.over:
        console.print(f"{decision.over / 1e6:.1f} MB over the quota: the rest is pinned, in use, or made here")


def _opened(home: Path | None) -> tuple[Store, Releases]:
    from paceline.cli.publish import opened
    from paceline.client.connect import home_folder

    store, releases, _ = opened(home_folder(home))
    return store, releases


def _pin(which: str, home: Path | None, *, wanted: bool) -> None:
    from paceline.wire.ids import Revision

    store, releases = _opened(home)
    found = _chosen(store, releases, which)
    for revision in found[:1] if wanted else found:
        store.pin(Revision(bytes.fromhex(revision)), wanted)
        console.print(f"revision {revision[:12]} is {'pinned' if wanted else 'no longer pinned'}", soft_wrap=True)


def _chosen(store: Store, releases: Releases, which: str) -> list[str]:
    """Revisions that are here: all of a name, the newest first, or the one that begins so. Raises ModelNotFound."""
    from paceline.store.collecting import survey
    from paceline.store.releases import verify
    from paceline.wire.errors import InvalidRequest, ModelNotFound

    here = survey(store.root)
    order = [verify(signed).revision.hex() for signed in reversed(releases.history(which))]
    order += [listing.manifest.revision.hex() for listing in store.list() if listing.name == which]
    order += [revision for revision, manifest in here.manifests.items() if manifest.name == which]
    found = [revision for revision in dict.fromkeys(order) if revision in here.manifests]
    if not found and len(which) >= _LEAST_DIGITS:
        found = [revision for revision in here.manifests if revision.startswith(which.lower())]
        if len(found) > 1:
            raise InvalidRequest(f"{which} begins {len(found)} revisions", cure="give more digits")
    if not found:
        raise ModelNotFound(f"nothing here is called {which!r}", cure="see: paceline models")
    return found
