"""Triton kernels of the lean GPU path. Knows pointers and strides; no models, no sessions. Imported only beside a GPU.

Decode is bound by reading weights, so what lies between two matrix products is folded into them: RMSNorm before a
product, SwiGLU or the residual after it. All sums are float32, in an order that does not depend on timing.

`PDL`: the kernel may start while its predecessor ends (programmatic dependent launch): it asks for its first weights,
then waits. Weights never depend on a predecessor; everything else does.

`FORM`: what the weights are. 0: numbers; 1 and 2: codes of 8 bits (int8, or fp8's bytes) and a float32 scale for each
output (engine.cuda_matrix). The scale is applied to the sum, so a product of codes costs the bytes that it reads.
"""

from __future__ import annotations

import triton
import triton.language as tl

# --- one row times a matrix


@triton.jit
def numbers(w, FORM: tl.constexpr):
    """Weights as they came from memory → numbers."""
    if FORM == 2:
        w = w.to(tl.float8e4nv, bitcast=True)
    return w


@triton.jit
def _square_and_gain(x, gain_ptr, at, fits, NORM: tl.constexpr):
    """`x` times the norm's gain, and the squares of `x`, both as they are needed before the norm's scale is known."""
    if NORM:
        gain = tl.load(gain_ptr + at, mask=fits, other=0.0).to(tl.float32)
        return x * gain, x * x
    return x, x


@triton.jit
def gemv(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    residual_ptr,
    gain_ptr,
    y_ptr,
    n_rows,
    eps,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    FORM: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """``y[n] = norm(x) · w[n] (+ bias[n]) (+ residual[n])`` for `ROWS` rows of `w` ``[n_rows, K]``."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < n_rows
    columns = tl.arange(0, STEP)
    weights = rows[:, None].to(tl.int64) * K + columns[None, :]
    if FORM and K > STEP:  # a thread then reads 8 of them at once, as it reads `x`, and none change hands
        weights = tl.max_contiguous(weights, (1, 8))
    w = tl.load(w_ptr + weights, mask=here[:, None] & (columns < K)[None, :], other=0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(x_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
    x, squares = _square_and_gain(x, gain_ptr, columns, columns < K, NORM)
    total = numbers(w, FORM).to(tl.float32) * x[None, :]
    for k in tl.range(STEP, K, STEP, num_stages=STAGES):
        at = k + columns
        fits = at < K
        w = tl.load(w_ptr + weights + k, mask=here[:, None] & fits[None, :], other=0)
        x = tl.load(x_ptr + at, mask=fits, other=0.0).to(tl.float32)
        x, more = _square_and_gain(x, gain_ptr, at, fits, NORM)
        squares += more
        total += numbers(w, FORM).to(tl.float32) * x[None, :]
    y = tl.sum(total, axis=1)
    if FORM:
        y = y * tl.load(scale_ptr + rows, mask=here, other=0.0)
    if NORM:
        y = y * tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    if BIAS:
        y += tl.load(bias_ptr + rows, mask=here, other=0.0).to(tl.float32)
    if RESIDUAL:
        y += tl.load(residual_ptr + rows, mask=here, other=0.0).to(tl.float32)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=here)


@triton.jit
def gemv_swiglu(
    x_ptr,
    w_ptr,
    scale_ptr,
    gain_ptr,
    y_ptr,
    n_rows,
    eps,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    FORM: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """``y[n] = silu(g) · u`` with ``g = norm(x) · w[n]`` and ``u = norm(x) · w[n_rows + n]``; `w` ``[2 n_rows, K]``."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < n_rows
    gates = w_ptr + rows[:, None].to(tl.int64) * K
    ups = gates + n_rows.to(tl.int64) * K
    columns = tl.arange(0, STEP)
    mask = here[:, None] & (columns < K)[None, :]
    g = tl.load(gates + columns[None, :], mask=mask, other=0)
    u = tl.load(ups + columns[None, :], mask=mask, other=0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(x_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
    x, squares = _square_and_gain(x, gain_ptr, columns, columns < K, True)
    gate = numbers(g, FORM).to(tl.float32) * x[None, :]
    up = numbers(u, FORM).to(tl.float32) * x[None, :]
    for k in tl.range(STEP, K, STEP, num_stages=STAGES):
        at = k + columns
        fits = at < K
        mask = here[:, None] & fits[None, :]
        g = tl.load(gates + at[None, :], mask=mask, other=0)
        u = tl.load(ups + at[None, :], mask=mask, other=0)
        x = tl.load(x_ptr + at, mask=fits, other=0.0).to(tl.float32)
        x, more = _square_and_gain(x, gain_ptr, at, fits, True)
        squares += more
        gate += numbers(g, FORM).to(tl.float32) * x[None, :]
        up += numbers(u, FORM).to(tl.float32) * x[None, :]
    scale = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    gated = tl.sum(gate, axis=1) * scale
    along = tl.sum(up, axis=1) * scale
    if FORM:
        gated = gated * tl.load(scale_ptr + rows, mask=here, other=0.0)
        along = along * tl.load(scale_ptr + n_rows + rows, mask=here, other=0.0)
    y = gated / (1.0 + tl.exp(-gated)) * along
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=here)


# --- a few rows times a matrix


@triton.jit
def gemm_few(
    x_ptr,
    w_ptr,
    scale_ptr,
    y_ptr,
    m,
    n,
    k,
    splits,
    M: tl.constexpr,
    N: tl.constexpr,
    STEP: tl.constexpr,
    SWIGLU: tl.constexpr,
    FORM: tl.constexpr,
):
    """``y[part, row, column] = x[row] · w[column]``, over one of `splits` parts of k, for few rows: m ≤ M.

    The weights are the left operand, which has 64 rows at least; x ``[m, k]`` is the right one, which may have 16.
    `SWIGLU`: as in `gemv_swiglu`, and there is one part. k is a multiple of splits · STEP.
    """
    columns = tl.program_id(0) * N + tl.arange(0, N)
    here = columns < n
    rows = tl.arange(0, M)
    there = rows < m
    first = tl.program_id(1) * (k // splits)
    at = first + tl.arange(0, STEP)
    w = w_ptr + columns[:, None].to(tl.int64) * k + at[None, :]
    x = x_ptr + rows[None, :] * k + at[:, None]
    total = tl.zeros([N, M], tl.float32)
    other = tl.zeros([N, M], tl.float32)
    for _ in range(0, k // splits, STEP):
        right = tl.load(x, mask=there[None, :], other=0.0)
        left = tl.load(w, mask=here[:, None], other=0)
        total = tl.dot(numbers(left, FORM).to(right.dtype), right, total)
        if SWIGLU:
            up = tl.load(w + n.to(tl.int64) * k, mask=here[:, None], other=0)
            other = tl.dot(numbers(up, FORM).to(right.dtype), right, other)
        w += STEP
        x += STEP
    if FORM:
        total = total * tl.load(scale_ptr + columns, mask=here, other=0.0)[:, None]
        if SWIGLU:
            other = other * tl.load(scale_ptr + n + columns, mask=here, other=0.0)[:, None]
    if SWIGLU:
        total = total / (1.0 + tl.exp(-total)) * other
    y = y_ptr + tl.program_id(1) * m * n + rows[None, :] * n + columns[:, None]
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=here[:, None] & there[None, :])


# --- what lies between products, many rows


@triton.jit
def add_norm(
    x_ptr,
    parts_ptr,
    gain_ptr,
    normed_ptr,
    rows,
    eps,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    NORM: tl.constexpr,
):
    """``x[row] += Σ parts[·, row]`` in place (PARTS may be 0), then ``normed[row] = RMSNorm(x[row])`` where `NORM`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDE)
    fits = at < K
    x = tl.load(x_ptr + row * K + at, mask=fits, other=0.0).to(tl.float32)
    if PARTS:
        for part in tl.static_range(PARTS):
            x += tl.load(parts_ptr + (part * rows + row) * K + at, mask=fits, other=0.0).to(tl.float32)
        x = x.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + row * K + at, x, mask=fits)
        x = x.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / K + eps)
        gain = tl.load(gain_ptr + at, mask=fits, other=0.0).to(tl.float32)
        tl.store(normed_ptr + row * K + at, (x * scale * gain).to(normed_ptr.dtype.element_ty), mask=fits)


@triton.jit
def swiglu(x_ptr, y_ptr, K: tl.constexpr, WIDE: tl.constexpr):
    """``y = silu(x[:, :K]) · x[:, K:]``; x ``[rows, 2 K]``."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    fits = at < K
    gate = tl.load(x_ptr + row * 2 * K + at, mask=fits, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * K + K + at, mask=fits, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y_ptr + row * K + at, y.to(y_ptr.dtype.element_ty), mask=fits)


# --- the ends of a step: what comes from the host's pinned memory, and what goes there


@triton.jit
def take_ids(host_ptr, embed_ptr, h_ptr, numbers_ptr, size, K: tl.constexpr, WIDE: tl.constexpr):
    """A row's token id, slot and position (`host` ``[3, size]`` int32, pinned) to the device; its embedding to `h`."""
    row = tl.program_id(0)
    token = tl.load(host_ptr + row).to(tl.int64)
    tl.store(numbers_ptr + size + row, tl.load(host_ptr + size + row))
    tl.store(numbers_ptr + 2 * size + row, tl.load(host_ptr + 2 * size + row))
    at = tl.arange(0, WIDE)
    tl.store(h_ptr + row * K + at, tl.load(embed_ptr + token * K + at, mask=at < K), mask=at < K)


@triton.jit
def take_rows(host_ptr, incoming_ptr, h_ptr, numbers_ptr, finite_ptr, size, K: tl.constexpr, WIDE: tl.constexpr):
    """As `take_ids`, for a row of activations (`incoming` ``[size, K]``, pinned); tells the host if it is finite."""
    row = tl.program_id(0)
    tl.store(numbers_ptr + size + row, tl.load(host_ptr + size + row))
    tl.store(numbers_ptr + 2 * size + row, tl.load(host_ptr + 2 * size + row))
    at = tl.arange(0, WIDE)
    x = tl.load(incoming_ptr + row * K + at, mask=at < K, other=0.0)
    wide = x.to(tl.float32)
    bad = (wide != wide) | (tl.abs(wide) == float("inf"))
    tl.store(finite_ptr + row, 1 - tl.max(bad.to(tl.int32), axis=0))
    tl.store(h_ptr + row * K + at, x, mask=at < K)


@triton.jit
def give_rows(h_ptr, host_ptr, K: tl.constexpr, WIDE: tl.constexpr):
    """A row of `h` to the host's pinned memory: a kernel starts sooner behind another than a copy does."""
    at = tl.arange(0, WIDE)
    row = tl.program_id(0) * K
    tl.store(host_ptr + row + at, tl.load(h_ptr + row + at, mask=at < K), mask=at < K)


@triton.jit
def best_of_part(x_ptr, peaks_ptr, ids_ptr, n, parts, WIDE: tl.constexpr):
    """The greatest of `WIDE` logits and the least id that has it; a NaN counts as infinite. Grid ``(rows, parts)``."""
    row, part = tl.program_id(0), tl.program_id(1)
    at = part * WIDE + tl.arange(0, WIDE)
    x = tl.load(x_ptr + row.to(tl.int64) * n + at, mask=at < n, other=float("-inf")).to(tl.float32)
    x = tl.where(x != x, float("inf"), x)
    peak = tl.max(x, axis=0)
    tl.store(peaks_ptr + row * parts + part, peak)
    tl.store(ids_ptr + row * parts + part, tl.min(tl.where(x == peak, at, 2147483647), axis=0))


@triton.jit
def best_of_all(peaks_ptr, ids_ptr, best_ptr, peak_ptr, parts, WIDE: tl.constexpr):
    """The greatest of the parts, to the host: `best` int32 and `peak` float32 ``[rows]``."""
    row, part = tl.program_id(0), tl.arange(0, WIDE)
    x = tl.load(peaks_ptr + row * parts + part, mask=part < parts, other=float("-inf"))
    ids = tl.load(ids_ptr + row * parts + part, mask=part < parts, other=2147483647)
    peak = tl.max(x, axis=0)
    tl.store(peak_ptr + row, peak)
    tl.store(best_ptr + row, tl.min(tl.where(x == peak, ids, 2147483647), axis=0))
