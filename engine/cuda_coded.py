"""Triton kernels and products of coded weights (engine.cuda_matrix). Imported only beside a GPU.

Up to `FEW` rows a product is bound by reading codes, so it decodes them in registers: 8 bits go through the kernels of
plain weights (engine.cuda_kernels), 4 bits through those here. For more rows codes are widened first, for cuBLAS. Which
sizes are fastest was measured on an H100 (docs/LOG.md, 28 November).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from paceline.engine import cuda_kernels
from paceline.engine.cuda_matrix import GROUP, Coded

FEW = 64
"""Rows up to which codes are decoded in registers."""
_STEP = 128
"""Inputs that a product of few rows takes at a time."""
_PROGRAMS = 256
"""About what keeps a card's processors busy: below it, the inputs of a product are split among programs."""
_CHUNK = 32_768
"""Outputs whose weights are widened at a time."""


@triton.jit
def _float(code):
    """A small integer as a float, by its bits: 2^23 with it in the last places, less 2^23. To convert is slower."""
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _plus(y, at_ptr, here, USED: tl.constexpr):
    """`y`, and what lies at `at_ptr` where it is `USED`."""
    if USED:
        y += tl.load(at_ptr, mask=here, other=0.0).to(tl.float32)
    return y


@triton.jit
def gemv_nibbles(
    x_ptr,
    w_ptr,
    scale_ptr,
    least_ptr,
    bias_ptr,
    residual_ptr,
    gain_ptr,
    y_ptr,
    n_rows,
    eps,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """As `cuda_kernels.gemv`, of 4-bit codes; `GROUPS` groups of 32 inputs at a time."""
    ALL: tl.constexpr = K // 32
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < n_rows
    groups = tl.arange(0, GROUPS)[None, :, None]
    byte = tl.arange(0, 16)[None, None, :]
    whose = rows[:, None, None].to(tl.int64)
    codes = w_ptr + tl.max_contiguous(whose * (K // 2) + groups * 16 + byte, (1, 1, 8))
    steps = whose * ALL + groups
    inputs = x_ptr + groups * 32 + byte
    b = tl.load(codes, mask=here[:, None, None] & (groups < ALL), other=0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.zeros([ROWS, GROUPS, 16], tl.float32)
    squares = tl.zeros([1, GROUPS, 16], tl.float32)
    for g in tl.range(0, ALL, GROUPS, num_stages=STAGES):
        fits = (g + groups) < ALL
        more = tl.load(codes + (g + GROUPS) * 16, mask=here[:, None, None] & ((g + GROUPS + groups) < ALL), other=0)
        scale = tl.load(scale_ptr + steps + g, mask=here[:, None, None] & fits, other=0.0).to(tl.float32)
        least = tl.load(least_ptr + steps + g, mask=here[:, None, None] & fits, other=0.0).to(tl.float32)
        low = tl.load(inputs + g * 32, mask=fits, other=0.0).to(tl.float32)
        high = tl.load(inputs + g * 32 + 16, mask=fits, other=0.0).to(tl.float32)
        if NORM:
            squares += low * low + high * high
            gain = gain_ptr + (g + groups) * 32 + byte
            low *= tl.load(gain, mask=fits, other=0.0).to(tl.float32)
            high *= tl.load(gain + 16, mask=fits, other=0.0).to(tl.float32)
        wide = b.to(tl.int32)
        total += (_float(wide & 15) * low + _float(wide >> 4) * high) * scale + (low + high) * least
        b = more
    y = tl.sum(tl.sum(total, axis=2), axis=1)
    if NORM:
        y = y * tl.rsqrt(tl.sum(tl.sum(tl.sum(squares, axis=2), axis=1), axis=0) / K + eps)
    y = _plus(_plus(y, bias_ptr + rows, here, BIAS), residual_ptr + rows, here, RESIDUAL)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=here)


@triton.jit
def gemm_few_nibbles(
    x_ptr, w_ptr, scale_ptr, least_ptr, y_ptr, m, n, k, splits, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr
):
    """As `cuda_kernels.gemm_few` without SwiGLU, of 4-bit codes. Weights are rounded to the rows' dtype."""
    GROUPS: tl.constexpr = STEP // 32
    HALF: tl.constexpr = STEP // 2
    columns = tl.program_id(0) * N + tl.arange(0, N)
    here = columns < n
    rows = tl.arange(0, M)
    there = rows < m
    first = tl.program_id(1) * (k // splits)
    whose = columns[:, None, None].to(tl.int64)
    groups = tl.arange(0, GROUPS)[None, :, None]
    codes = w_ptr + whose * (k // 2) + first // 2 + groups * 16 + tl.arange(0, 16)[None, None, :]
    steps = whose * (k // 32) + first // 32 + groups
    half = tl.arange(0, HALF)
    x = x_ptr + rows[None, :] * k + first + (half // 16 * 32 + half % 16)[:, None]
    total = tl.zeros([N, M], tl.float32)
    for at in range(0, k // splits, STEP):
        b = tl.load(codes + at // 2, mask=here[:, None, None], other=0)
        scale = tl.load(scale_ptr + steps + at // 32, mask=here[:, None, None], other=0.0).to(tl.float32)
        least = tl.load(least_ptr + steps + at // 32, mask=here[:, None, None], other=0.0).to(tl.float32)
        low = tl.load(x + at, mask=there[None, :], other=0.0)
        high = tl.load(x + at + 16, mask=there[None, :], other=0.0)
        of_low = tl.reshape(((b & 15).to(tl.float32) * scale + least).to(low.dtype), (N, HALF))
        of_high = tl.reshape(((b >> 4).to(tl.float32) * scale + least).to(low.dtype), (N, HALF))
        total = tl.dot(of_low, low, total)
        total = tl.dot(of_high, high, total)
    y = y_ptr + tl.program_id(1) * m * n + rows[None, :] * n + columns[:, None]
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=here[:, None] & there[None, :])


@triton.jit
def widen_bytes(w_ptr, scale_ptr, y_ptr, K: tl.constexpr, WIDE: tl.constexpr, FORM: tl.constexpr):
    """8-bit codes → weights ``[rows, K]``; a program takes `WIDE` of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    w = tl.load(w_ptr + row * K + at, mask=at < K, other=0)
    y = cuda_kernels.numbers(w, FORM).to(tl.float32) * tl.load(scale_ptr + row)
    tl.store(y_ptr + row * K + at, y.to(y_ptr.dtype.element_ty), mask=at < K)


@triton.jit
def widen_nibbles(w_ptr, scale_ptr, least_ptr, y_ptr, K: tl.constexpr, GROUPS: tl.constexpr):
    """4-bit codes → weights ``[rows, K]``; a program takes `GROUPS` groups of one row."""
    ALL: tl.constexpr = K // 32
    row = tl.program_id(0).to(tl.int64)
    groups = (tl.program_id(1) * GROUPS + tl.arange(0, GROUPS))[:, None]
    byte = tl.arange(0, 16)[None, :]
    fits = groups < ALL
    b = tl.load(w_ptr + row * (K // 2) + groups * 16 + byte, mask=fits, other=0)
    scale = tl.load(scale_ptr + row * ALL + groups, mask=fits, other=0.0).to(tl.float32)
    least = tl.load(least_ptr + row * ALL + groups, mask=fits, other=0.0).to(tl.float32)
    y = y_ptr + row * K + groups * 32 + byte
    tl.store(y, ((b & 15).to(tl.float32) * scale + least).to(y_ptr.dtype.element_ty), mask=fits)
    tl.store(y + 16, ((b >> 4).to(tl.float32) * scale + least).to(y_ptr.dtype.element_ty), mask=fits)


def one_row(
    x: Tensor, weight: Coded, y: Tensor, extra: tuple[Tensor, Tensor, Tensor], eps: float, **fused: Any
) -> None:
    """``y = x · weight`` of 4-bit codes; `extra`: bias, residual and gain, each of which `fused` says to use or not."""
    n, k = weight.shape
    all_groups = k // GROUP
    groups = 1 << (all_groups - 1).bit_length() if all_groups <= 128 else 64
    gemv_nibbles[(-(-n // 4),)](
        x, weight.codes, weight.scale, weight.least, *extra, y, n, eps, K=k, ROWS=4, GROUPS=groups, **fused
    )


def few_rows(x: Tensor, weight: Coded) -> Tensor:
    """``x @ weight.T`` of at most `FEW` rows, as float32 parts ``[parts, rows, out]`` to be added up."""
    n, k = weight.shape
    m, wide = len(x), 128 if n >= _CHUNK else 64
    splits = 1
    while -(-n // wide) * splits < _PROGRAMS and splits < 8 and k % (2 * splits * _STEP) == 0:
        splits *= 2
    y = torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    padded = max(16, 1 << (m - 1).bit_length())
    sizes = {"M": padded, "N": wide, "STEP": _STEP, "num_warps": 8 if wide * padded >= 8192 else 4}
    grid = (-(-n // wide), splits)
    if weight.least is not None:
        gemm_few_nibbles[grid](x, weight.codes, weight.scale, weight.least, y, m, n, k, splits, **sizes, num_stages=3)
    else:
        cuda_kernels.gemm_few[grid](
            x, bits(weight), weight.scale, y, m, n, k, splits, **sizes, SWIGLU=False, FORM=form(weight), num_stages=3
        )
    return y


def fits_few(rows: int, weight: Coded) -> bool:
    """Whether `few_rows` takes it."""
    return rows <= FEW and weight.shape[1] % _STEP == 0


def many_rows(x: Tensor, weight: Coded, out: torch.dtype) -> Tensor:
    """``x @ weight.T`` through cuBLAS, in `out`; weights are rounded to the rows' dtype."""
    n, _ = weight.shape
    parts = [linear(x, _widened(weight, slice(at, at + _CHUNK), x.dtype)).to(out) for at in range(0, n, _CHUNK)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _widened(weight: Coded, rows: slice, dtype: torch.dtype) -> Tensor:
    codes, scale, k = bits(weight)[rows], weight.scale[rows], weight.shape[1]
    wide = torch.empty(len(codes), k, dtype=dtype, device=codes.device)
    grid = (len(codes), -(-k // 2048))
    if weight.least is None:
        widen_bytes[grid](codes, scale, wide, K=k, WIDE=2048, FORM=form(weight), num_warps=4)
    else:
        widen_nibbles[grid](codes, scale, weight.least[rows], wide, K=k, GROUPS=64, num_warps=4)
    return wide


def form(weight: Tensor | Coded) -> int:
    """What `cuda_kernels` is told of a weight: 0 numbers, 1 int8, 2 fp8."""
    return 0 if not isinstance(weight, Coded) else 1 if weight.codes.dtype == torch.int8 else 2


def bits(weight: Tensor | Coded) -> Tensor:
    """What `cuda_kernels` reads: of fp8 the bytes, which it takes for what they are."""
    if not isinstance(weight, Coded):
        return weight
    return weight.codes if weight.codes.dtype == torch.int8 else weight.codes.view(torch.uint8)
