"""An edited revision of an earlier one: some layers' files replaced, all other blocks shared. No tensor library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from paceline.store import tensorfile
from paceline.store.manifest import Block, Manifest
from paceline.store.store import Store
from paceline.wire.errors import InvalidRequest

_PIECE = 4 * 1024 * 1024


def edited(store: Store, base: Manifest, layers: Mapping[int, Path], name: str = "") -> Manifest:
    """`base` with the parameters of some decoder layers taken from safetensors files, and another name if given.

    A file names its tensors as inside the layer, with the shapes and dtypes of the layer it replaces. The new blocks
    are stored; the manifest is returned and not stored. Raises InvalidRequest, CorruptBlock, DiskFull.
    """
    blocks = list(base.layers)
    for layer, path in layers.items():
        if not 0 <= layer < len(blocks):
            raise InvalidRequest(f"layer {layer} of a model of {len(blocks)}")
        blocks[layer] = _replaced(store, blocks[layer], path)
    return msgspec.structs.replace(base, layers=tuple(blocks), name=name or base.name)


def _replaced(store: Store, old: Block, path: Path) -> Block:
    if not path.is_file():
        raise InvalidRequest(f"{path} is not a file", cure="give a safetensors file with one layer's tensors")
    want, given = tensorfile.read_layout(store.path(old.digest)), tensorfile.read_layout(path)
    forms = [{name: (info.dtype, info.shape) for name, info in layout.items()} for layout in (want, given)]
    if forms[0] != forms[1]:
        different = sorted(
            name for name in forms[0].keys() | forms[1].keys() if forms[0].get(name) != forms[1].get(name)
        )
        raise InvalidRequest(f"{path.name} does not fit the layer: {', '.join(different[:3])}")
    ordered = sorted(given.values(), key=lambda info: info.name)
    with store.writer() as writer, path.open("rb") as file:
        writer.write(tensorfile.header([(it.name, it.dtype, it.shape, it.size) for it in ordered]))
        for info in ordered:
            file.seek(info.offset)
            left = info.size
            while left and (piece := file.read(min(left, _PIECE))):
                writer.write(piece)
                left -= len(piece)
    return writer.block
