"""Blocks of a known revision, made again from where its weights once came from: a folder, a GGUF file, a hub.

What comes out has to have the hash that the manifest names, or it does not enter the store: the source is not believed,
and neither is the conversion. Whole-model memory is needed, so nodes run this as a process of its own::

    python -m paceline.engine.refill STORE REVISION SPAN SOURCE

Its last line on standard output is JSON: ``{}``, or an error's code, message and cure.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from paceline.engine import hub
from paceline.engine.source import Part, Source, canonical_json, write_part
from paceline.store.manifest import Block, Manifest
from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock, ModelNotFound, PacelineError
from paceline.wire.ids import Revision, Span

_CURE = "the source holds another model, or another version of it: name the one that was published"


def folder_of(source: str, tell: hub.Steps) -> Path:
    """A path that is here as it is, a hub id as a folder of the hub's cache. Raises ModelNotFound, and as `hub`."""
    path = Path(source)
    if path.exists():
        return path
    named = hub.parse(source)
    if named is None:
        raise ModelNotFound(
            f"{source!r} is neither here nor a model of a hub", cure="give a path, or org/name@revision"
        )
    return hub.snapshot(*named, tell)


def refill(store: Store, manifest: Manifest, span: Span, source: Source) -> int:
    """Write the blocks that serving `span` needs and that lack; how many. Raises CorruptBlock where one differs."""
    if source.layers != len(manifest.layers):
        raise CorruptBlock(f"the source has {source.layers} layers, not {len(manifest.layers)}", cure=_CURE)
    lacking = {block.hash for block in store.missing(manifest, span)}
    parts: dict[Part, Block] = {"embed": manifest.embed, "head": manifest.head, **dict(enumerate(manifest.layers))}
    try:
        for part, block in parts.items():
            if block.hash in lacking:
                write_part(store, source.tensors(part), expect=block)
        texts = ((manifest.tokenizer, source.tokenizer), (manifest.tokenizer_config, _texts(source)))
        for text, data in texts:
            if text is not None and text.hash in lacking:
                with store.writer(expect=text) as writer:
                    writer.write(data or b"")
    except CorruptBlock as error:
        raise CorruptBlock(f"not the weights of {manifest.revision.hex()[:12]}: {error.message}", cure=_CURE) from error
    return len(lacking)


def _texts(source: Source) -> bytes:
    return canonical_json(source.tokenizer_config)


def main(root: str, revision: str, span: str, source: str) -> None:
    """See the module. Raises typed errors."""
    store = Store(Path(root))
    manifest = store.manifest(Revision(bytes.fromhex(revision)))
    path = folder_of(source, lambda what, done, total: None)
    from paceline.engine.convert import open_source  # takes seconds, and there may be nothing to open

    refill(store, manifest, Span.parse(span), open_source(path, manifest.dtype))


if __name__ == "__main__":
    said: dict[str, str] = {}
    try:
        main(*sys.argv[1:])
    except PacelineError as error:
        said = {"code": error.code, "message": error.message, "cure": error.cure or ""}
    print(json.dumps(said))
