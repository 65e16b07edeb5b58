"""`paceline pull`: bring a model into the local store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.console import progress
from paceline.cli.keeping import StoreGb


def pull(
    model: Annotated[
        str, typer.Argument(help="`smollm2-135m-instruct`, a folder, a GGUF file, or org/name@revision of a hub.")
    ] = ("smollm2-135m-instruct"),
    name: Annotated[str, typer.Option(help="Name in the store, for a folder, a file or a model of a hub.")] = "",
    store_gb: StoreGb = 0.0,
    home: Annotated[Path | None, typer.Option(help="Where models lie.", envvar="PACELINE_HOME")] = None,
) -> None:
    """Bring a model into the local store: fetched, converted once to verified blocks, named by its hash."""
    from paceline.cli.publish import converted, opened, say
    from paceline.client.connect import home_folder
    from paceline.engine import default_model

    store, releases, identity = opened(home_folder(home), store_gb)
    before = {path.name for path in (store.root / "blocks").iterdir()}
    with progress() as report:
        if model == default_model.NAME:
            manifest = default_model.ensure(store, report)
        else:
            manifest = converted(store, model, name, report)
            store.lease.hold(manifest.revision)
            store.put_manifest(manifest)
    releases.publish(identity, manifest, time.time())
    say(manifest, releases, before)
