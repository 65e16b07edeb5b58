"""The manifest: what one model revision consists of, by content. Knows records and hashes; no files, no tensors.

A revision is the SHA-256 of the manifest's canonical bytes: JSON, keys sorted, fields at their default left out (so
that a field added later does not rename old revisions).
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from paceline.wire import limits
from paceline.wire.errors import Malformed
from paceline.wire.ids import Revision, Span
from paceline.wire.messages import Dtype

Hex256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Meta(ge=1, lt=1 << 48)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]

MAX_MANIFEST_BYTES = 1024 * 1024


class Block(Struct, frozen=True, omit_defaults=True):
    """An immutable file: its SHA-256 and its size in bytes."""

    hash: Hex256
    size: Annotated[int, Meta(ge=0, lt=1 << 48)]

    @property
    def digest(self) -> bytes:
        """The hash as 32 bytes, as messages carry it."""
        return bytes.fromhex(self.hash)


class Manifest(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One model revision. Tensor blocks are safetensors files.

    ``layers[i]``: the decoder layer's parameters, named as inside the layer (``self_attn.q_proj.weight``). `embed`:
    ``weight`` ``[vocab, hidden]``. `head`: ``norm.*`` and, unless `tied`, ``lm_head.*``; where `tied`, the LM head's
    weight is the embedding's and is stored once.
    """

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    name: Name
    family: Name
    """transformers' `model_type`."""
    architecture: Name
    config: dict[str, Any]
    """transformers' configuration, without versions, paths and dates."""
    dtype: Dtype
    hidden: Annotated[int, Meta(ge=1, le=limits.MAX_HIDDEN)]
    vocab: Annotated[int, Meta(ge=1, le=limits.MAX_VOCAB)]
    max_context: Positive
    layers: Annotated[tuple[Block, ...], Meta(min_length=1, max_length=limits.MAX_LAYERS)]
    embed: Block
    head: Block
    tied: bool = False
    eos_ids: Annotated[tuple[int, ...], Meta(max_length=limits.MAX_STOP_IDS)] = ()
    tokenizer: Block | None = None
    """tokenizer.json, as the `tokenizers` package reads it."""
    tokenizer_config: Block | None = None
    """JSON object: ``chat_template``, ``bos_token``, ``eos_token``, ``add_bos_token`` …"""
    generation: dict[str, Any] = {}
    """Sampling defaults that the publisher suggests."""

    def encode(self) -> bytes:
        """Canonical bytes."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def revision(self) -> Revision:
        return Revision(sha256(self.encode()).digest())

    @property
    def span(self) -> Span:
        """All layers."""
        return Span(0, len(self.layers))

    def blocks(self, span: Span | None = None) -> Iterator[Block]:
        """The tensor blocks that serving `span` needs (default: all), each once."""
        span = span or self.span
        yield from dict.fromkeys(self.layers[span.start : span.end])
        if span.start == 0 or (self.tied and span.end == len(self.layers)):
            yield self.embed
        if span.end == len(self.layers):
            yield self.head

    def texts(self) -> Iterator[Block]:
        """The blocks that a client needs."""
        yield from (block for block in (self.tokenizer, self.tokenizer_config) if block is not None)


def decode(data: bytes) -> Manifest:
    """Canonical bytes → manifest. Raises Malformed, also for bytes that are valid but not canonical."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise Malformed(f"manifest of {len(data)} bytes is over the limit")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Malformed(f"not a manifest: {error}") from error
    if manifest.encode() != data:
        raise Malformed("manifest is not in canonical form")
    return manifest
