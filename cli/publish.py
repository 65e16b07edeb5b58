"""`paceline publish`: a new revision of a model, signed by this machine's publisher key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.console import Report, console, progress
from paceline.cli.keeping import StoreGb
from paceline.wire.errors import InvalidRequest

if TYPE_CHECKING:
    from paceline.net.identity import Identity
    from paceline.store.manifest import Manifest
    from paceline.store.releases import Releases
    from paceline.store.store import Store
    from paceline.wire.ids import Revision

PUBLISHER = "publisher"
"""The identity (under ``identities/``) that signs this machine's releases."""


Canary = Annotated[
    float | None,
    typer.Option(
        help="Share of new sessions that may try this revision, above 0 and below 1: a canary. The present "
        "revision stays, for all others. Again with another share: more, or fewer.",
    ),
]
Promote = Annotated[
    bool, typer.Option("--promote", help="SOURCE is a name: release the canary that runs there for everybody.")
]
Withdraw = Annotated[
    bool, typer.Option("--withdraw", help="SOURCE is a name: end its canary, by releasing the present revision again.")
]


def publish(
    source: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face folder, a GGUF file, a model of a hub (org/name@revision), or a model or revision of "
            "this machine's store."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name to publish under; the source's own unless given.")] = "",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="N=FILE: take decoder layer N from this safetensors file, for an edited revision."),
    ] = None,
    canary: Canary = None,
    promote: Promote = False,
    withdraw: Withdraw = False,
    store_gb: StoreGb = 0.0,
    home: Annotated[Path | None, typer.Option(help="Where models lie.", envvar="PACELINE_HOME")] = None,
) -> None:
    """Publish a revision of a model: verified blocks, a manifest, and a release signed by this machine's key.

    Nodes that follow the name take it up one after another; what both revisions share is stored and sent once.
    Publishing an older revision again is the way back: it becomes the newest, and a canary that runs ends.

    Examples:

      paceline publish ./my-model --name team/chat

      paceline publish org/name@main --name team/chat          # from a hub (HF_ENDPOINT, HF_TOKEN)

      paceline publish team/chat --layer 7=layer7.safetensors

      paceline publish 12e73533b29b… --name team/chat          # roll back

      paceline publish ./tuned --name team/chat --canary 0.1   # for a tenth of new sessions

      paceline publish team/chat --promote                     # … for everybody; or --withdraw
    """
    from paceline.client.connect import home_folder

    share = _share(canary, alone=not (promote or withdraw))
    root = home_folder(home)
    store, releases, identity = opened(root, store_gb)
    before = {path.name for path in (store.root / "blocks").iterdir()}
    if promote or withdraw:
        if promote == withdraw or name or layer:
            raise InvalidRequest("--promote and --withdraw stand alone", cure="paceline publish NAME --promote")
        manifest = store.manifest(_ending(releases, source, promote=promote))
    else:
        manifest = _manifest(store, source, name, layer or [])
    store.lease.hold(manifest.revision)
    releases.publish(identity, manifest, time.time(), share)
    # What a name means on this machine is what everybody gets: a canary has its release only.
    store.put_manifest(manifest, name=share >= 1.0)
    say(manifest, releases, before)
    console.print(f"signed by publisher {identity.public.hex()}", soft_wrap=True)


def _share(canary: float | None, *, alone: bool) -> float:
    if canary is None:
        return 1.0
    if not 0.0 < canary < 1.0 or not alone:
        raise InvalidRequest(
            f"a canary of {canary:g}" if alone else "--canary begins a canary, --promote and --withdraw end it",
            cure="name a share above 0 and below 1, such as 0.1",
        )
    return canary


def _ending(releases: Releases, name: str, *, promote: bool) -> Revision:
    """The revision whose release ends the canary of a name. Raises InvalidRequest where none runs."""
    from paceline.wire.ids import Revision

    full, canary = releases.standing(name)
    if canary is None or full is None:
        raise InvalidRequest(f"no canary of {name!r} is known here", cure="see what is: paceline models")
    return Revision(canary.revision if promote else full.revision)


def opened(root: Path, store_gb: float = 0.0) -> tuple[Store, Releases, Identity]:
    """This machine's store, the releases it believes, and the key it signs with (made on first use)."""
    from paceline.engine import default_model
    from paceline.net.identity import Identity
    from paceline.store import trust
    from paceline.store.releases import Releases
    from paceline.store.store import Store

    store, identity = (
        Store(root / "store", int(store_gb * 1e9)),
        Identity.load_or_create(root / "identities" / PUBLISHER),
    )
    believed = trust.load(root, own=identity.public, revisions=[bytes.fromhex(default_model.REVISION)])
    return store, Releases(store, believed), identity


def say(manifest: Manifest, releases: Releases, before: set[str]) -> None:
    """One line about a revision: what it is, and how much of it is new here."""
    from paceline.store.releases import verify

    blocks = {block.hash: block.size for block in (*manifest.blocks(), *manifest.texts())}
    new = {name: size for name, size in blocks.items() if name not in before}
    newest = releases.newest(manifest.name)
    sequence = f"release {verify(newest).sequence}, " if newest else ""
    if newest and not verify(newest).full:
        sequence += f"a canary for {verify(newest).share:.0%} of new sessions, "
    console.print(
        f"[bold]{manifest.name}[/]: {sequence}revision {manifest.revision.hex()[:12]}, {manifest.architecture}, "
        f"{len(manifest.layers)} layers, {sum(blocks.values()) / 1e6:.1f} MB; "
        f"new here: {len(new)} of {len(blocks)} blocks, {sum(new.values()) / 1e6:.1f} MB",
        soft_wrap=True,
    )


def _manifest(store: Store, source: str, name: str, layers: list[str]) -> Manifest:
    from paceline.engine import default_model
    from paceline.store.editing import edited

    with progress() as report:
        if source == default_model.NAME and not Path(source).exists():
            base = default_model.ensure(store, report)
        else:
            base = _here(store, source) or converted(store, source, name, report)
        return edited(store, base, _files(layers), name)


def _here(store: Store, source: str) -> Manifest | None:
    """A model or revision of the store, unless there is a file or folder of that name. Raises CorruptBlock."""
    from paceline.engine import hub
    from paceline.wire.errors import ModelNotFound

    if Path(source).exists():
        return None
    try:
        return store.manifest(source)
    except ModelNotFound:
        if hub.parse(source) is None:
            raise
    return None


def converted(store: Store, source: str, name: str, report: Report) -> Manifest:
    """A folder, a file, or a model of a hub, as blocks in the store; the manifest is not stored."""
    from paceline.engine.refill import folder_of

    path = folder_of(source, report)
    if not Path(source).exists():
        console.print(f"{source} is commit {path.name[:12]} of the hub", soft_wrap=True)
    from paceline.engine.convert import open_source
    from paceline.engine.source import build

    named = name or (path.stem.lower() if Path(source).exists() else source.partition("@")[0].lower())
    return build(store, open_source(path), named, lambda done, total: report("convert", done, total))


def _files(layers: list[str]) -> dict[int, Path]:
    found = {}
    for text in layers:
        number, equals, path = text.partition("=")
        if not equals or not number.strip().isdigit():
            raise InvalidRequest(f"{text!r} names no layer", cure="write N=FILE, for example 7=layer7.safetensors")
        found[int(number)] = Path(path)
    return found
