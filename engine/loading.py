"""From settings to a loaded, measured span: what a daemon asks of the engine in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from paceline.engine import cuda_choice, default_model
from paceline.engine.cuda_arch import LEAN
from paceline.engine.shard import Shard, Weights
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from paceline.wire.ids import Revision, Span
from paceline.wire.messages import Dtype
from paceline.wire.offers import Measured

Report = Callable[[str, int, int], None]
RANK_MODULE = "paceline.engine.tensor_rank"
"""What a rank's process runs; a node may have one that imports less."""


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """`span`: ``"all"``, ``"START:END"``, or ``"K/N"``: the K-th (from 1) of N parts of equal decode cost.

    `weights`: the form of linear weights (``f32``: as they are); part of the numerics class.
    `weights_bytes`: of them in memory, 0: all; layers beyond that are run from the store's files.
    `threads`: the most that a step may use, 0: all cores; decode steps use fewer where that is faster.
    `tensor_parallel`: so many devices of this machine hold a part of every layer each, and KV stays in memory;
    each but the first is a process of `rank_module`.
    `kv_positions`: KV in memory, in positions of the span. With a `kv_folder`, up to `kv_spilled` positions more may
    lie in files there while others run, and up to `prefix_bytes` of what closed sessions computed.
    """

    model: str = default_model.NAME
    span: str = "all"
    device: str = "cpu"
    dtype: Dtype = "f32"
    weights: Weights = "f32"
    threads: int = 0
    weights_bytes: int = 0
    tensor_parallel: int = 1
    rank_module: str = RANK_MODULE
    kv_positions: int = 65_536
    kv_folder: Path | None = None
    kv_spilled: int = 131_072
    prefix_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Loaded:
    """A span, ready to serve."""

    model: str
    revision: Revision
    shard: Shard
    measured: Measured


def load_service(store: Store, config: LoadConfig, report: Report) -> Loaded:
    """Pull the default model if it is wanted and absent, load the span, measure it.

    Raises InvalidRequest, ModelNotFound, UnsupportedModel, CorruptBlock, DiskFull.
    """
    manifest = _default(store, config, report) or store.manifest(config.model)
    report("load", 0, 0)
    from paceline.engine.measure import measure
    from paceline.engine.memory import settle

    shard = _shard(store, manifest, config)
    report("measure", 0, 0)
    measured = measure(shard)
    settle()
    return Loaded(manifest.name, manifest.revision, shard, measured)


def load_beside(store: Store, manifest: Manifest, config: LoadConfig, like: Shard) -> Shard:
    """A span of another revision of a model that is being served as `like`, which goes on computing meanwhile.

    Not measured: it has the same layers, and a forward pass here would slow those of the sessions. Raises as
    `load_service`.
    """
    threads = config.threads or getattr(like, "threads", 0)  # torch's own count is what its last step ran on
    return _shard(store, manifest, replace(config, threads=threads), warm=False)


def _shard(store: Store, manifest: Manifest, config: LoadConfig, *, warm: bool = True) -> Shard:
    """The lean shard of a GPU where the family and the machine have one, else transformers' modules."""
    span, dtype = resolve_span(manifest, config.span), config.dtype
    cuda_choice.check_weights(config.device, config.weights)
    plain = (config.device, dtype, config.weights, config.tensor_parallel)
    if config.weights_bytes and plain != ("cpu", "f32", "f32", 1):
        raise InvalidRequest(
            "layers are run from disk on a CPU in f32, in one process",
            cure="leave out --weights-gb and serve a shorter span, or leave the other form out",
        )
    if config.tensor_parallel > 1:
        _refuse_coded(config)
        return _parallel(store, manifest, span, config)
    lean = cuda_choice.lean_shard(
        store, manifest, span, config.device, dtype, config.kv_positions, warm=warm, weights=config.weights
    )
    if lean is not None:
        return lean
    _refuse_coded(config)
    from paceline.engine.kv_room import KvLimits
    from paceline.engine.prefixes import PrefixLimits
    from paceline.engine.torch_shard import TorchShard

    return TorchShard.load(
        store,
        manifest,
        span,
        device=config.device,
        dtype=dtype,
        weights=config.weights,
        threads=config.threads,
        budget=config.weights_bytes or None,
        kv=KvLimits(
            config.kv_positions, config.kv_spilled, config.kv_folder, PrefixLimits(disk_bytes=config.prefix_bytes)
        ),
    )


def _refuse_coded(config: LoadConfig) -> None:
    if config.device.startswith("cuda") and config.weights != "f32":
        raise UnsupportedModel(
            f"{config.weights} weights on a GPU need our own kernels: {', '.join(LEAN)} in bf16, one GPU a node",
            cure="leave --weights out, or serve a shorter span",
        )


def _parallel(store: Store, manifest: Manifest, span: Span, config: LoadConfig) -> Shard:
    from paceline.engine.tensor_parallel import TensorParallelShard
    from paceline.engine.tensor_workers import Workers

    return TensorParallelShard.load(
        store,
        manifest,
        span,
        config.tensor_parallel,
        device=config.device,
        dtype=config.dtype,
        weights=config.weights,
        threads=config.threads,
        kv_positions=config.kv_positions,
        start=partial(Workers.start, module=config.rank_module),
    )


def _default(store: Store, config: LoadConfig, report: Report) -> Manifest | None:
    """The default model, pulled unless what the span needs is here; None where another model is wanted."""
    if config.model not in (default_model.NAME, default_model.REVISION):
        return None
    try:
        manifest = store.manifest(default_model.REVISION)
        if not store.missing(manifest, resolve_span(manifest, config.span)):
            return manifest
    except ModelNotFound:
        pass
    return default_model.ensure(store, report)


def resolve_span(manifest: Manifest, text: str) -> Span:
    """The user's spelling of a span → layers of this model. Raises InvalidRequest."""
    layers = len(manifest.layers)
    try:
        if text == "all":
            return manifest.span
        if "/" in text:
            part, _, parts = text.partition("/")
            from paceline.engine.split import suggest_split

            return suggest_split(manifest, int(parts))[int(part) - 1]
        span = Span.parse(text)
    except (ValueError, IndexError) as error:
        raise InvalidRequest(f"{text!r} is not a span", cure="write START:END (0:10), K/N (1/3) or all") from error
    if span.end > layers:
        raise InvalidRequest(f"span {span} of a model of {layers} layers", cure=f"stay within 0:{layers}")
    return span
