"""Weight matrices of the lean GPU path: as they are, or as codes of 8 or 4 bits with scales. Knows tensors, no models.

=====  ========================================  =================================================================
form   codes                                     a weight is
=====  ========================================  =================================================================
int8   int8 ``[out, in]``                        code · scale of its output
fp8    float8 (e4m3) ``[out, in]``               code · scale of its output
int4   two to a byte, uint8 ``[out, in / 2]``    code · scale + least, of its group of 32 inputs (GGUF's Q4_1)
=====  ========================================  =================================================================

Rows stay as they are (weight-only), sums are float32. Price of each form in perplexity: ``python -m bench.perplexity``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.engine.shard import Weights

FORMS: tuple[Weights, ...] = ("int8", "fp8", "int4")
GROUP = 32
"""Inputs that share a scale and a least value in the int4 form."""

_HALF = GROUP // 2
_TINY = 1e-12
_ROWS = 8192
"""Outputs that are coded at a time: a small card has no room for a large vocabulary in float32."""
_GREATEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, slots=True)
class Coded:
    """A weight ``[out, in]`` in one of the forms above. `scale` is float32 ``[out]``; of int4, it and `least` are
    bfloat16 ``[out, in / 32]``, and byte j of a group's 16 holds input j and, above it, input j + 16."""

    codes: Tensor
    scale: Tensor
    least: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``, as of the weight that it stands for."""
        out, stored = self.codes.shape
        return out, stored if self.least is None else 2 * stored

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.least is None else self.least.nbytes)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight that it stands for ``[out, in]``."""
        if self.least is None:
            return (self.codes.float() * self.scale[:, None]).to(dtype)
        out, wide = self.shape
        groups = self.codes.view(out, wide // GROUP, _HALF)
        codes = torch.cat((groups & 15, groups >> 4), dim=2).float()
        return (codes * self.scale[..., None].float() + self.least[..., None].float()).view(out, wide).to(dtype)


Matrix = Tensor | Coded


def coded(weight: Matrix, form: Weights) -> Matrix:
    """`weight` ``[out, in]``, in any float, in a form; ``f32``: as it is. Inputs that int4 cannot group make it int8.

    Raises ValueError for a form that this path does not have.
    """
    if form == "f32":
        return weight
    if isinstance(weight, Coded):
        raise TypeError("coded already")
    if form not in FORMS:
        raise ValueError(f"no form {form!r} of weights on a GPU")
    if form == "int4" and weight.shape[1] % GROUP == 0:
        parts = [_nibbles(part) for part in torch.split(weight, _ROWS)]
    else:
        parts = [
            _bytes(part, torch.float8_e4m3fn if form == "fp8" else torch.int8) for part in torch.split(weight, _ROWS)
        ]
    if len(parts) == 1:
        return parts[0]
    least = [part.least for part in parts if part.least is not None]
    return Coded(
        _joined([part.codes for part in parts]),
        _joined([part.scale for part in parts]),
        _joined(least) if least else None,
    )


def coded_head(weight: Matrix, form: Weights) -> Matrix:
    """An LM head in the form that goes with `form`: int8 beside int4. In int4 it costs more than all layers together
    (perplexity +4.1 % instead of +0.1, docs/LOG.md).
    """
    return coded(weight, "int8" if form == "int4" else form)


def dense(weight: Matrix, dtype: torch.dtype) -> Tensor:
    """The weight ``[out, in]`` as numbers."""
    return weight.dense(dtype) if isinstance(weight, Coded) else weight


def _joined(parts: list[Tensor]) -> Tensor:
    """`torch.cat`, which does not take float8 everywhere: its bytes, then."""
    kind = parts[0].dtype
    if kind != torch.float8_e4m3fn:
        return torch.cat(parts)
    return torch.cat([part.view(torch.uint8) for part in parts]).view(kind)


def _bytes(weight: Tensor, kind: torch.dtype) -> Coded:
    wide = weight.float()
    scale = (wide.abs().amax(dim=1) / _GREATEST[kind]).clamp(min=_TINY)
    codes = wide / scale[:, None]
    return Coded((codes.round() if kind == torch.int8 else codes).to(kind), scale)


def _nibbles(weight: Tensor) -> Coded:
    """Steps are rounded first, and codes chosen for what the steps then are."""
    out, wide = weight.shape
    groups = weight.float().view(out, wide // GROUP, GROUP)
    least = groups.amin(dim=2).bfloat16()
    scale = ((groups.amax(dim=2) - least.float()) / 15).clamp(min=_TINY).bfloat16()
    codes = ((groups - least[..., None].float()) / scale[..., None].float()).round().clamp(0, 15).to(torch.uint8)
    low, high = codes[..., :_HALF], codes[..., _HALF:]
    return Coded((low | (high << 4)).view(out, wide // 2).contiguous(), scale, least)
