"""`paceline publish`: a new revision of a model, signed by this machine's publisher key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.console import Report, console, progress
from paceline.cli.keeping import StoreGb

if TYPE_CHECKING:
    from paceline.net.identity import Identity
    from paceline.store.manifest import Manifest
    from paceline.store.releases import Releases
    from paceline.store.store import Store

PUBLISHER = "publisher"
"""The identity (under ``identities/``) that signs this machine's releases."""


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
    store_gb: StoreGb = 0.0,
    home: Annotated[Path | None, typer.Option(help="Where models lie.", envvar="PACELINE_HOME")] = None,
) -> None:
    """Publish a revision of a model: verified blocks, a manifest, and a release signed by this machine's key.

    Nodes that follow the name take it up one after another; what both revisions share is stored and sent once.
    Publishing an older revision again is the way back: it becomes the newest.

    Examples:

      paceline publish ./my-model --name team/chat

      paceline publish org/name@main --name team/chat          # from a hub (HF_ENDPOINT, HF_TOKEN)

      paceline publish team/chat --layer 7=layer7.safetensors

      paceline publish 12e73533b29b… --name team/chat          # roll back
    """
    from paceline.client.connect import home_folder

    root = home_folder(home)
    store, releases, identity = opened(root, store_gb)
    before = {path.name for path in (store.root / "blocks").iterdir()}
    manifest = _manifest(store, source, name, layer or [])
    store.lease.hold(manifest.revision)
    store.put_manifest(manifest)
    release = releases.publish(identity, manifest, time.time())
    say(manifest, releases, before)
    console.print(f"signed by publisher {identity.public.hex()}", soft_wrap=True)
    assert release is not None


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
    from paceline.wire.errors import InvalidRequest

    found = {}
    for text in layers:
        number, equals, path = text.partition("=")
        if not equals or not number.strip().isdigit():
            raise InvalidRequest(f"{text!r} names no layer", cure="write N=FILE, for example 7=layer7.safetensors")
        found[int(number)] = Path(path)
    return found
