"""What this machine could hold of a model, and how fast, before anything of it is loaded: an estimate for placement.

Knows memory and block sizes. The speed is measured once the span is loaded; until then decoding is taken to be what it
mostly is, reading every weight once.
"""

from __future__ import annotations

import time

from paceline.engine.loading import LoadConfig
from paceline.node.placing import Subject
from paceline.routing.placement import Device
from paceline.store.manifest import Manifest
from paceline.wire.offers import Measured, Service

NUMBER_BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.625}
"""In memory, of one weight; int4 has a scale and a zero for each group of 32."""

GPU_BYTES_PER_S = 5e11
"""A guess for devices that are not the CPU; what is loaded is measured."""

_PROBE_BYTES = 16 << 20


def subject_of(manifest: Manifest, load: LoadConfig, room_bytes: float) -> Subject:
    """`room_bytes`: memory for weights; 0: half of what is free now."""
    form = load.dtype if load.weights == "f32" else load.weights
    stored = NUMBER_BYTES.get(manifest.dtype, 4.0)
    layer_bytes = NUMBER_BYTES[form] / stored * max(block.size for block in manifest.layers)
    ends = NUMBER_BYTES[load.dtype] / stored * (manifest.embed.size + manifest.head.size)
    room = room_bytes or 0.5 * _free_bytes()
    capacity = max(1, min(len(manifest.layers), int((room - ends) / layer_bytes)))
    speed = _read_bytes_per_s() if load.device == "cpu" else GPU_BYTES_PER_S
    blank = Service(
        manifest.name, manifest.revision, 0, 1, len(manifest.layers), manifest.hidden, _numerics(load),
        Measured(0.0, 0.0), 0, min(manifest.max_context, 32_768),
    )  # fmt: skip
    return Subject(blank, Device(layer_bytes / speed, capacity))


def _numerics(load: LoadConfig) -> str:
    form = "" if load.weights == "f32" else f"-{load.weights}"
    ranks = f"-tp{load.tensor_parallel}" if load.tensor_parallel > 1 else ""
    return f"{load.device}-{load.dtype}{form}{ranks}"


def _free_bytes() -> float:
    import psutil

    return float(psutil.virtual_memory().available)


def _read_bytes_per_s() -> float:
    """A copy reads and writes: twice its size passes."""
    source = bytes(_PROBE_BYTES)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        bytearray(source)
        times.append(time.perf_counter() - began)
    return 2.0 * _PROBE_BYTES / min(times)
