"""A span of any certified family: transformers' own modules, built empty and filled from blocks.

The model class is constructed on the meta device (no memory), only the span's layers are kept, and each layer's
parameters are bound to the mapped blocks. What lies outside the layers is engine.ends' business.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paceline.engine import attention, ends, linear, tensor_split
from paceline.engine.blocks import DTYPES, read_tensors
from paceline.engine.kv import StepHolder
from paceline.engine.lean import lean
from paceline.engine.mapped import leave_mapped, resident, stays_mapped
from paceline.engine.shard import Weights
from paceline.store.manifest import Block, Manifest
from paceline.store.store import Store
from paceline.wire.errors import UnsupportedModel
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype

CERTIFIED = {
    *("arcee", "cohere", "cohere2", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "gpt_oss", "granite"),
    *("llama", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("seed_oss", "smollm3", "starcoder2"),
}
"""`model_type`s that `python -m bench.parity_shards` proves. Everything else is refused."""

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Rotary embeddings whose angles depend on the sequence's length: exact only below the original context."""
_SMALL = 1 << 20
"""Bytes below which a parameter is copied out of a mapping that is otherwise no longer needed."""

_building = threading.Lock()
"""Empty modules are built under switches of torch and transformers that hold for the whole process."""

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Parts:
    """A loaded span."""

    layers: list[nn.Module]
    rotary: list[Rotary]
    """Position embedding of each layer; layers that share one share the object."""
    holder: StepHolder
    head: ends.Head | None
    tail: ends.Tail | None
    max_context: int


def load(
    store: Store,
    manifest: Manifest,
    span: Span,
    device: torch.device,
    dtype: Dtype,
    *,
    packed: bool,
    weights: Weights = "f32",
    part: tensor_split.Part | None = None,
    budget: int | None = None,
) -> Parts:
    """Build and fill a span. Raises UnsupportedModel, ModelNotFound, CorruptBlock.

    `packed`: linear weights are copied once into the layout that the CPU multiplies fastest; otherwise they stay
    pages of the store's files. `weights`: the form of those that are packed. `part`: of every layer and of the LM head
    only what one rank of several holds; the embedding then is the first rank's alone. Nothing is joined while loading.
    `budget`: bytes of packed weights; layers beyond it stay pages of the files (engine.mapped).
    """
    if span.end > len(manifest.layers):
        raise UnsupportedModel(f"span {span} of a model of {len(manifest.layers)} layers")
    with _building:
        return _load(store, manifest, span, device, dtype, packed, weights, part, budget)


def _load(
    store: Store,
    manifest: Manifest,
    span: Span,
    device: torch.device,
    dtype: Dtype,
    packed: bool,
    weights: Weights,
    part: tensor_split.Part | None,
    budget: int | None,
) -> Parts:
    config = configuration(manifest)
    model = _skeleton(config, DTYPES[dtype])
    base, holder = model.model, StepHolder()
    packed = packed and linear.can_pack(device, DTYPES[dtype])
    filler = _Filler(store, model, device, DTYPES[dtype], packed, weights, part)
    base.rotary_emb = type(base.rotary_emb)(config).to(device)
    rotaries = _rotaries(base.rotary_emb, config, span)
    held, tail_held = len(span), True
    if budget is not None and packed:
        held, tail_held = _held(manifest, span, DTYPES[dtype].itemsize, budget)
    layers = [
        (filler.layer if at - span.start < held else filler.mapped_layer)(
            base.layers[at], manifest.layers[at], holder, rotary
        )
        for at, rotary in zip(range(span.start, span.end), rotaries, strict=True)
    ]
    head = tail = None
    if span.start == 0 and (part is None or part.rank == 0):
        head = ends.head(model, filler.fill(base.embed_tokens, manifest.embed))
    if span.end == len(manifest.layers):
        tail = ends.tail(model, *filler.tail(base.norm, model.lm_head, manifest, mapped=not tail_held))
        if part is not None:
            tail.gather = part.everybody(manifest.vocab)
    return Parts(layers, rotaries, holder, head, tail, max_context(config, manifest))


def _held(manifest: Manifest, span: Span, number: int, budget: int) -> tuple[int, bool]:
    """See `engine.mapped.resident`. `number`: bytes of one in memory."""
    wider = number / DTYPES[manifest.dtype].itemsize
    sizes = [round(manifest.layers[at].size * wider) for at in range(span.start, span.end)]
    last = 0
    if span.end == len(manifest.layers):
        last = round((manifest.embed.size if manifest.tied else manifest.head.size) * wider)
    return resident(sizes, last, budget)


def configuration(manifest: Manifest) -> Any:
    """transformers' configuration object. Raises UnsupportedModel for a family that is not certified."""
    if manifest.family not in CERTIFIED:
        raise UnsupportedModel(
            f"model family {manifest.family!r} is not certified: its tokens could be wrong",
            cure=f"certified families: {', '.join(sorted(CERTIFIED))}",
        )
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[manifest.family].from_dict(dict(manifest.config))
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if kinds:
        raise UnsupportedModel(f"layers of type {', '.join(sorted(kinds))} are not supported")
    return config


def _skeleton(config: Any, dtype: torch.dtype) -> Any:
    from transformers import initialization

    attention.register()
    with torch.device("meta"), _RangesOnHost(), initialization.no_init_weights():
        model = _model_class(config)._from_config(config, dtype=dtype, attn_implementation=attention.NAME)
    for path in ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"):
        holder, _, name = path.rpartition(".")
        if not hasattr(model.get_submodule(holder), name):
            raise UnsupportedModel(f"{type(model).__name__} has no {path}")
    return model.eval().requires_grad_(False)


class _RangesOnHost(TorchFunctionMode):
    """Where tensors are made on the meta device, ranges are real: what a rotary embedding computes from one needs more
    operations than the meta device has in a node (engine.lean_imports)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.arange and kwargs.get("device") is None:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _model_class(config: Any) -> Any:
    """The family's own causal language model. Found beside its configuration: transformers' table of all model classes
    would bring in text generation, which a span never does."""
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    for name, found in vars(module).items():
        if name.endswith("ForCausalLM") and found.config_class is type(config):
            return found
    raise UnsupportedModel(f"{module.__name__} has no causal language model")


class _Filler:
    """Puts blocks' tensors into modules that were built on the meta device."""

    def __init__(
        self,
        store: Store,
        model: Any,
        device: torch.device,
        dtype: torch.dtype,
        packed: bool,
        weights: Weights,
        part: tensor_split.Part | None,
    ) -> None:
        self._store, self._model, self._device, self._dtype = store, model, device, dtype
        self._packed, self._weights, self._part = packed, weights, part
        strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
        loose = getattr(model, "_keep_in_fp32_modules", None) or ()
        self._in_f32 = {*strict, *(loose if dtype == torch.float16 else ())}

    def layer(self, layer: nn.Module, block: Block, holder: StepHolder, rotary: Rotary) -> nn.Module:
        for module in self._fill_part(layer, block).modules():
            if hasattr(module, "layer_idx"):
                module.paceline = holder  # type: ignore[assignment]

        def turn(n: int) -> tuple[Tensor, Tensor]:
            return rotary(torch.empty(1, 1, 1), torch.arange(n)[None])

        if self._packed:
            layer = lean(layer, turn, self._weights) or self._pack(layer)
        if self._part is not None:
            tensor_split.connect(layer, self._part)
        return layer

    def mapped_layer(self, layer: nn.Module, block: Block, holder: StepHolder, rotary: Rotary) -> nn.Module:
        """A layer that is run from the file's pages."""
        self._bind(layer, self._as_they_lie(layer, read_tensors(self._store.path(block.digest))))
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.paceline = holder  # type: ignore[assignment]
        leave_mapped(layer, self._dtype)
        return layer

    def _as_they_lie(self, module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Large weights as they are in the file; the rest in memory."""
        return {
            name: tensor if stays_mapped(module, name, tensor) else self._placed(name, tensor).clone()
            for name, tensor in tensors.items()
        }

    def _fill_part(self, layer: nn.Module, block: Block) -> nn.Module:
        if self._part is None:
            return self.fill(layer, block)
        config, mapped = self._model.config, read_tensors(self._store.path(block.digest))
        tensors = {name: self._placed(name, self._part.cut(name, whole, config)) for name, whole in mapped.items()}
        tensor_split.fit(layer, tensors)
        tensor_split.localise(layer, self._part)
        self._bind(layer, tensors)
        return layer

    def fill(self, module: nn.Module, block: Block) -> nn.Module:
        self._bind(module, self._tensors(block))
        return module

    def tail(
        self, norm: nn.Module, lm_head: nn.Module, manifest: Manifest, *, mapped: bool
    ) -> tuple[nn.Module, nn.Module]:
        """`norm` and the LM head, filled. `mapped`: run the latter from the file's pages."""
        found = read_tensors(self._store.path(manifest.head.digest))
        if manifest.tied:
            found["lm_head.weight"] = read_tensors(self._store.path(manifest.embed.digest))["weight"]
        both = nn.ModuleDict({"norm": norm, "lm_head": lm_head})
        if self._part is not None:
            start, end = self._part.vocabulary(manifest.vocab)[self._part.rank]
            found |= {name: whole[start:end] for name, whole in found.items() if name.startswith("lm_head.")}
            tensor_split.fit(both, found)
        if mapped:
            self._bind(both, self._as_they_lie(both, found))
            leave_mapped(both, self._dtype)
            return both["norm"], both["lm_head"]
        tensors = {name: self._placed(name, tensor) for name, tensor in found.items()}
        self._bind(both, tensors)
        self._pack(both)
        return both["norm"], both["lm_head"]

    def _tensors(self, block: Block) -> dict[str, Tensor]:
        found = read_tensors(self._store.path(block.digest))
        return {name: self._placed(name, tensor) for name, tensor in found.items()}

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        keep = any(part in name.split(".") for part in self._in_f32)
        return tensor.to(device=self._device, dtype=torch.float32 if keep else self._dtype)

    def _bind(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        for part in module.modules():
            self._make_buffers(part)
        try:
            module.load_state_dict(tensors, strict=True, assign=True)
        except RuntimeError as error:
            raise UnsupportedModel(f"the model's blocks do not fit {type(module).__name__}: {error}") from error
        module.requires_grad_(False)

    def _make_buffers(self, module: nn.Module) -> None:
        """Buffers that no block holds are recomputed by the family's own initialisation."""
        absent = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        absent = {name: buffer for name, buffer in absent.items() if name in module._non_persistent_buffers_set}
        for name, buffer in absent.items():
            module._buffers[name] = torch.empty_like(buffer, device=self._device)
        if absent:
            self._model._init_weights(module)

    def _pack(self, module: nn.Module) -> nn.Module:
        if self._packed:
            # Errors in logits count most, and an LM head in 4 bits is hardly faster than in 8.
            head = "lm_head" in dict(module.named_children()) and self._weights == "int4"
            linear.pack(module, "int8" if head else self._weights)
            for parameter in module.parameters():
                if parameter.nbytes < _SMALL:
                    parameter.data = parameter.data.clone()
        return module


def rotary(config: Any, device: torch.device) -> Rotary:
    """The family's position embedding alone, for tables of angles."""
    made: Rotary = type(_skeleton(config, torch.float32).model.rotary_emb)(config).to(device)
    return made


def _rotaries(rotary: Any, config: Any, span: Span) -> list[Rotary]:
    if "layer_type" not in inspect.signature(rotary.forward).parameters:
        return [rotary] * len(span)
    kinds = config.layer_types[span.start : span.end]
    by_kind = {kind: functools.partial(rotary, layer_type=kind) for kind in set(kinds)}
    return [by_kind[kind] for kind in kinds]


def max_context(config: Any, manifest: Manifest) -> int:
    """Positions up to which the family's angles do not depend on the sequence's length."""
    ropes = getattr(config, "rope_parameters", None) or {}
    limit = manifest.max_context
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            limit = min(limit, int(original))
    return limit
