"""From wherever weights come to a manifest and blocks. Knows names and bytes; no torch, no file formats of others.

A `Source` lists a model's parameters in transformers' naming; `publish` writes them to a store, one block per decoder
layer, one for the embedding, one for norm and LM head. Nothing that differs between machines or versions goes in, so
the same weights give the same revision anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from paceline.store import tensorfile
from paceline.store.manifest import Block, Manifest
from paceline.store.store import Progress, Store
from paceline.wire.limits import MAX_CONTEXT
from paceline.wire.messages import Dtype

Part = int | Literal["embed", "head"]
"""A decoder layer by number, the embedding, or norm and LM head."""

SAFETENSORS_NAMES: dict[Dtype, str] = {"f32": "F32", "f16": "F16", "bf16": "BF16"}

_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "_attn_implementation", "use_cache")


@dataclass(frozen=True, slots=True)
class RawTensor:
    """One parameter: little-endian, row-major. `dtype` as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True)
class Source:
    """A whole model, read piece by piece: `tensors(part)` may be called from two threads at once."""

    config: dict[str, Any]
    dtype: Dtype
    tensors: Callable[[Part], Sequence[RawTensor]]
    tied: bool
    tokenizer: bytes | None = None
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    eos_ids: tuple[int, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])


def publish(store: Store, source: Source, name: str, progress: Progress | None = None) -> Manifest:
    """Write the blocks and the manifest of `source`, and let `name` mean it. Raises DiskFull, StoreError."""
    manifest = build(store, source, name, progress)
    store.put_manifest(manifest)
    return manifest


def build(store: Store, source: Source, name: str, progress: Progress | None = None) -> Manifest:
    """Write the blocks of `source`; the manifest is returned and not stored. Progress counts blocks."""
    parts: list[Part] = ["embed", "head", *range(source.layers)]
    total, done = source.layers + 2, 0
    blocks: dict[Part, Block] = {}
    with ThreadPoolExecutor(2) as pool:
        for part, block in zip(
            parts, pool.map(lambda part: write_part(store, source.tensors(part)), parts), strict=True
        ):
            blocks[part] = block
            done += 1
            if progress is not None:
                progress(done, total)
    return _manifest(store, source, name, blocks)


def write_part(store: Store, tensors: Sequence[RawTensor], expect: Block | None = None) -> Block:
    """One block of these tensors; with `expect`, that one or CorruptBlock. Raises DiskFull, StoreError."""
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    with store.writer(expect) as writer:
        writer.write(tensorfile.header([(t.name, t.dtype, t.shape, memoryview(t.data).nbytes) for t in ordered]))
        for tensor in ordered:
            writer.write(tensor.data)
    return writer.block


def _manifest(store: Store, source: Source, name: str, blocks: dict[Part, Block]) -> Manifest:
    config = {key: value for key, value in source.config.items() if key not in _VOLATILE}
    texts = canonical_json(source.tokenizer_config)
    return Manifest(
        name=name,
        family=str(config["model_type"]),
        architecture=str((config.get("architectures") or ["?"])[0]),
        config=config,
        dtype=source.dtype,
        hidden=int(config["hidden_size"]),
        vocab=int(config["vocab_size"]),
        max_context=min(int(config.get("max_position_embeddings") or MAX_CONTEXT), MAX_CONTEXT),
        layers=tuple(blocks[layer] for layer in range(source.layers)),
        embed=blocks["embed"],
        head=blocks["head"],
        tied=source.tied,
        eos_ids=source.eos_ids,
        tokenizer=None if source.tokenizer is None else store.put(source.tokenizer),
        tokenizer_config=None if source.tokenizer is None else store.put(texts),
        generation=source.generation,
    )


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, ASCII: the same bytes wherever it is made."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
