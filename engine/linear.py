"""Matrix products of a CPU shard, with weights packed once in the form that its numerics class multiplies.

Knows rows and weights, no models. Figures of every form, and of those that were rejected: docs/LOG.md. Price of
packing: the packed weights are this process's own memory, no longer pages of the file, which are dropped once packed.

=====  =============================================================  ===================================
class  weights                                                        rows
=====  =============================================================  ===================================
f32    float32, in oneDNN's blocks or as they are (`quickest`)        float32
bf16   bfloat16, in oneDNN's blocks                                   bfloat16, sums in float32
int8   8 bits, one scale for each output                              8 bits, one scale for each row
int4   4 bits, scale and least value for every 32 inputs (GGUF Q4_1)  bfloat16, sums in float32
=====  =============================================================  ===================================

No class mixes rows: what a row gives does not depend on what else is in the batch, beyond rounding.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paceline.engine.shard import Weights

CLASSES: tuple[Weights, ...] = ("f32", "bf16", "int8", "int4")
GROUP = 32
"""Inputs that share a scale in the int4 class."""

CLEARLY = 0.9
"""Torch's own product is taken only where it takes less than this share of the time of oneDNN's."""
_TRIED, _SIDE, _TURNS = 8, 1024, 6
"""`quickest` tries so many square weights of such a side, 32 MB: more than the caches next to a core hold."""


class Product(Protocol):
    """``[rows, in] → [rows, out]``, float32."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The product and `other` ``[rows, out]`` added."""
        ...


class Packed:
    """f32 and bf16, through oneDNN; what follows a product is done while its result is in the cache."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), 1)
        self._bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self._after(x, "none")

    def swish(self, x: Tensor) -> Tensor:
        """The product, times its own sigmoid; in the form that `times` takes."""
        return _pointwise(x.to(self._dtype), self._weight, self._bias, "swish", [], "")  # type: ignore[no-any-return]

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product, times `other`."""
        made: Tensor = _pointwise_binary(x.to(self._dtype), other, self._weight, self._bias, "mul")
        return made

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        if self._dtype != torch.float32:
            return self(x) + other
        made: Tensor = _pointwise_binary(x, other, self._weight, self._bias, "add")
        return made

    def _after(self, x: Tensor, what: str) -> Tensor:
        made: Tensor = _pointwise(x.to(self._dtype), self._weight, self._bias, what, [], "")
        return made.float()


class Plain:
    """f32 as torch multiplies by itself, weights lying as ``[in, out]``."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight.t().contiguous()
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self._weight) if self._bias is None else torch.addmm(self._bias, x, self._weight)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        made = torch.addmm(other, x, self._weight)
        return made if self._bias is None else made.add_(self._bias)


class Bytes:
    """int8: rows are quantised as they come, each by its own greatest value, so sums are exact integers."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
        whole = (weight / self._scale[:, None]).round().to(torch.int8)
        self._weight: Any = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).mul_(1 / 127)
        rows = (x / scale).add_(128.5).to(torch.uint8)
        made: Tensor = _bytes(
            rows, 1.0, 128, self._weight, self._scale, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        made.mul_(scale)
        return made if self._bias is None else made.add_(self._bias)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x).add_(other)


class Nibbles:
    """int4: groups of 32 inputs on the 16 values between their least and their greatest. Weights that came from GGUF's
    Q4 blocks lie on such values already and are kept as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        out, into = weight.shape
        groups = weight.view(out, into // GROUP, GROUP)
        least = groups.amin(dim=2)
        step = ((groups.amax(dim=2) - least) / 15).clamp(min=1e-12)
        whole = ((groups - least[..., None]) / step[..., None]).round().clamp(0, 15).to(torch.int32)
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole.view(out, into), 2)
        self._steps = torch.stack((step, least + 8 * step), dim=2).transpose(0, 1).to(torch.bfloat16).contiguous()
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = _nibbles(x.to(torch.bfloat16), self._weight, GROUP, self._steps).float()
        return made if self._bias is None else made + self._bias

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) + other


_pointwise: Any = None
_pointwise_binary: Any = None
_bytes: Any = None
_nibbles: Any = torch.ops.aten._weight_int4pack_mm_for_cpu


def product(weight: Tensor, bias: Tensor | None, weights: Weights) -> Product:
    """`weight` ``[out, in]``, in the form of its class. Sizes that int4 cannot group fall to int8. ValueError: fp8."""
    if weights == "fp8":
        raise ValueError("no fp8 on a CPU")
    if weights == "f32":
        return quickest()(weight, bias)
    if weights == "bf16":
        return Packed(weight, bias, torch.bfloat16)
    if weights == "int8" or weight.shape[1] % GROUP or weight.shape[0] % 16:
        return Bytes(weight, bias)
    return Nibbles(weight, bias)


@functools.cache
def quickest() -> Callable[[Tensor, Tensor | None], Product]:
    """Which form float32 weights take in this process: tried once, with one row, in 0.05 s.

    Both give the same numbers up to rounding; which of the two reads weights faster is the processor's affair, by a
    third on either side (figures: docs/LOG.md). By the processor's time of one thread, which others cannot take.
    """
    packed = functools.partial(Packed, dtype=torch.float32)
    return Plain if share(Plain, packed) < CLEARLY else packed


@torch.inference_mode()
def share(
    one: Callable[[Tensor, Tensor | None], Product],
    other: Callable[[Tensor, Tensor | None], Product],
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """The time of one row through weights in the form `one`, as a share of that in the form `other`; in turns."""
    weights = [torch.full((_SIDE, _SIDE), 0.5) for _ in range(_TRIED)]
    pairs = [(one(weight, None), other(weight, None)) for weight in weights]
    row, shares, threads = torch.ones(1, _SIDE), list[float](), torch.get_num_threads()
    torch.set_num_threads(1)
    for pair in pairs * _TURNS:
        taken = list[float]()
        for each in pair:
            began = clock()
            each(row)
            taken.append(clock() - began)
        shares.append(taken[0] / max(taken[1], 1e-9))
    torch.set_num_threads(threads)
    return median(shares)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """True where this torch has the packed products for rows of `dtype` on `device`."""
    global _pointwise, _pointwise_binary, _bytes
    if device.type != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names) or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    _pointwise = torch.ops.mkldnn._linear_pointwise.default
    _pointwise_binary = torch.ops.mkldnn._linear_pointwise.binary
    _bytes = torch.ops.onednn.qlinear_pointwise.default
    return True


class PackedLinear(nn.Module):
    """`nn.Linear` for inference. ``[…, in] → […, out]``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, weights: Weights) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._product = product(weight, bias, weights)

    def forward(self, x: Tensor) -> Tensor:
        rows = self._product(x.reshape(-1, self.in_features))
        return rows.view(*x.shape[:-1], self.out_features)


def pack(module: nn.Module, weights: Weights = "f32") -> None:
    """Replace every `nn.Linear` below `module` by its packed form. Other classes, subclasses too, stay as they are."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            bias = None if child.bias is None else child.bias.data
            setattr(module, name, PackedLinear(child.weight.data, bias, weights))
        else:
            pack(child, weights)
