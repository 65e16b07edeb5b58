"""The operations of a lean span by fused kernels, and which form of each is taken when. Needs a GPU and Triton.

The choices were measured on an H100 at an 8B Llama's shapes (``python -m bench.engine_gpu_kernels``, docs/LOG.md): one
row goes through products of our own at 83 to 99 % of the memory's rate, where cuBLAS reaches 64 to 89 %; a few rows go
through cuBLAS, except where the product and SwiGLU are one kernel and at the LM head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from paceline.engine import cuda_attention, cuda_coded, cuda_kernels
from paceline.engine.cuda_matrix import Coded, Matrix
from paceline.engine.cuda_ops import Attention, Rows
from paceline.engine.cuda_pages import splits

FEW = 64
"""Rows up to which a product is bound by reading its weights."""
TILE_ROWS = 64
"""Rows of one tile of prefill attention."""
_WIDE_HEAD = 65_536
"""Outputs from which on a product without anything fused beats cuBLAS."""
_SDPA_FROM = 256
"""Rows of a whole prompt from which torch's flash attention beats the paged kernel."""


class TritonOps:
    """`Ops` on one GPU. Keeps scratch memory: one step at a time."""

    def __init__(self, device: torch.device, pdl: bool = True) -> None:
        self._device, self._pdl = device, pdl
        self._nothing = torch.empty(16, dtype=torch.bfloat16, device=device)
        self._done = torch.zeros(1 << 14, dtype=torch.int32, device=device)

    def _launch(self, warps: int, stages: int = 1) -> dict[str, Any]:
        found: dict[str, Any] = {"STAGES": stages, "PDL": self._pdl, "num_warps": warps}
        return found | {"launch_pdl": True} if self._pdl else found

    def project(
        self, h: Tensor, gain: Tensor, eps: float, weight: Matrix, bias: Tensor | None, out: torch.dtype
    ) -> Tensor:
        n, k = weight.shape
        if len(h) == 1:
            y = torch.empty(1, n, dtype=out, device=h.device)
            self._gemv(h, weight, y, gain=gain, eps=eps, bias=bias)
            return y
        x = self._normed(h, gain, eps)
        if isinstance(weight, Coded):
            return _coded(x, weight, bias, out)
        if bias is None and len(h) <= FEW and n >= _WIDE_HEAD and k % 128 == 0:
            return _few(x, weight, out, swiglu=False)
        return linear(x, weight, bias).to(out)

    def add(self, h: Tensor, x: Tensor, weight: Matrix) -> None:
        if len(h) == 1:
            self._gemv(x, weight, h, residual=h)
        elif isinstance(weight, Coded):
            self._add_coded(h, x, weight)
        else:
            h.addmm_(x, weight.t())

    def gated(self, h: Tensor, gain: Tensor, eps: float, weight: Matrix) -> Tensor:
        n, k = weight.shape[0] // 2, weight.shape[1]
        y = torch.empty(len(h), n, dtype=h.dtype, device=h.device)
        nibbles = isinstance(weight, Coded) and weight.least is not None
        if len(h) == 1 and not nibbles:
            codes, scale, form = _parts(weight)
            cuda_kernels.gemv_swiglu[(-(-n // 2),)](
                h, codes, scale, gain, y, n, eps, K=k, ROWS=2, STEP=_step(k, form), FORM=form, **self._launch(8)
            )
            return y
        if nibbles:
            both = self.project(h, gain, eps, weight, None, h.dtype)
        else:
            x = self._normed(h, gain, eps)
            if len(h) <= FEW and k % 128 == 0:
                return _few(x, weight, h.dtype, swiglu=True)
            both = _coded(x, weight, None, h.dtype) if isinstance(weight, Coded) else linear(x, weight)
        cuda_kernels.swiglu[(len(h), -(-n // 1024))](both, y, K=n, WIDE=1024, num_warps=4)
        return y

    def attend(self, qkv: Tensor, rows: Rows, attention: Attention) -> Tensor:
        if rows.tiles is None:
            return self._decode(qkv, rows, attention)
        self._rotate(qkv, rows, attention)
        if rows.whole and len(qkv) >= _SDPA_FROM and not attention.window:
            return _whole(qkv, attention)
        out = torch.empty(len(qkv), attention.heads * attention.head, dtype=qkv.dtype, device=qkv.device)
        cuda_attention.ragged[(len(rows.tiles), attention.heads)](
            qkv,
            attention.keys,
            attention.values,
            attention.table,
            rows.tiles,
            out,
            attention.head**-0.5,
            attention.window,
            attention.table.stride(0),
            **_sizes(attention),
            ROWS=TILE_ROWS,
            TILE=64 if attention.head <= 128 else 32,
            num_warps=4,
            num_stages=2,
        )
        return out

    # --- pieces

    def _gemv(
        self,
        x: Tensor,
        weight: Matrix,
        y: Tensor,
        gain: Tensor | None = None,
        eps: float = 0.0,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> None:
        n, k = weight.shape
        long = k > 8192
        extra = (self._or_nothing(bias), self._or_nothing(residual), self._or_nothing(gain))
        fused = {"NORM": gain is not None, "BIAS": bias is not None, "RESIDUAL": residual is not None}
        if isinstance(weight, Coded) and weight.least is not None:
            cuda_coded.one_row(x, weight, y, extra, eps, **fused, **self._launch(4))
            return
        codes, scale, form = _parts(weight)
        step = 1024 if long else _step(k, form)
        warps = (4 if long else 8) if form else (8 if long else 4)
        cuda_kernels.gemv[(-(-n // 4),)](
            x,
            codes,
            scale,
            *extra,
            y,
            n,
            eps,
            K=k,
            ROWS=4,
            STEP=step,
            FORM=form,
            **fused,
            **self._launch(warps),
        )

    def _add_coded(self, h: Tensor, x: Tensor, weight: Coded) -> None:
        if not cuda_coded.fits_few(len(h), weight):
            h += cuda_coded.many_rows(x, weight, h.dtype)
            return
        k, parts = h.shape[1], cuda_coded.few_rows(x, weight)
        cuda_kernels.add_norm[(len(h),)](
            h,
            parts,
            h,
            h,
            len(h),
            0.0,
            K=k,
            WIDE=_power(k),
            PARTS=len(parts),
            NORM=False,
            num_warps=8 if k > 2048 else 4,
        )

    def _or_nothing(self, tensor: Tensor | None) -> Tensor:
        return self._nothing if tensor is None else tensor

    def _normed(self, h: Tensor, gain: Tensor, eps: float) -> Tensor:
        k = h.shape[1]
        out = torch.empty_like(h)
        cuda_kernels.add_norm[(len(h),)](
            h, h, gain, out, len(h), eps, K=k, WIDE=_power(k), PARTS=0, NORM=True, num_warps=8 if k > 2048 else 4
        )
        return out

    def _rotate(self, qkv: Tensor, rows: Rows, attention: Attention) -> None:
        cuda_attention.rotate_and_write[(len(qkv),)](
            qkv,
            attention.keys,
            attention.values,
            attention.table,
            rows.slots,
            rows.positions,
            attention.cos,
            attention.sin,
            self._or_nothing(attention.q_gain),
            self._or_nothing(attention.k_gain),
            attention.eps,
            attention.table.stride(0),
            **_sizes(attention),
            WIDE=_power(attention.heads),
            NORM=attention.q_gain is not None,
            num_warps=4,
        )

    def _decode(self, qkv: Tensor, rows: Rows, attention: Attention) -> Tensor:
        many, kv_heads, size = len(qkv), attention.kv_heads, attention.head
        parts = splits(many, kv_heads)
        group = max(16, _power(attention.heads // kv_heads))
        out = torch.empty(many, attention.heads * size, dtype=qkv.dtype, device=qkv.device)
        cells = many * kv_heads * parts * group if parts > 1 else 1
        scratch = torch.empty(cells * (size + 2), dtype=torch.float32, device=qkv.device)
        launch = self._launch(4)
        del launch["STAGES"]
        cuda_attention.decode[(many, kv_heads, parts)](
            qkv,
            attention.keys,
            attention.values,
            attention.table,
            rows.slots,
            rows.positions,
            attention.cos,
            attention.sin,
            self._or_nothing(attention.q_gain),
            self._or_nothing(attention.k_gain),
            scratch,
            scratch[cells * size :],
            self._done,
            out,
            attention.eps,
            size**-0.5,
            attention.window,
            attention.table.stride(0),
            **_sizes(attention),
            GROUP=group,
            TILE=64 if size <= 128 else 32,
            SPLITS=parts,
            NORM=attention.q_gain is not None,
            **launch,
        )
        return out


def _parts(weight: Matrix) -> tuple[Tensor, Tensor, int]:
    """What a kernel reads of numbers, or of codes of 8 bits: themselves, their scales, the form."""
    codes = cuda_coded.bits(weight)
    return codes, weight.scale if isinstance(weight, Coded) else codes, cuda_coded.form(weight)


def _coded(x: Tensor, weight: Coded, bias: Tensor | None, out: torch.dtype) -> Tensor:
    """``x @ weight.T + bias`` of more than one row."""
    if not cuda_coded.fits_few(len(x), weight):
        y = cuda_coded.many_rows(x, weight, out)
        return y if bias is None else (y + bias).to(out)
    parts = cuda_coded.few_rows(x, weight)
    y = parts[0] if len(parts) == 1 else parts.sum(dim=0)
    return (y if bias is None else y + bias).to(out)


def _few(x: Tensor, weight: Matrix, out: torch.dtype, *, swiglu: bool) -> Tensor:
    """``x @ weight.T`` of at most `FEW` rows, with SwiGLU over the weight's halves where asked. k a multiple of 128."""
    n, k = weight.shape[0] // 2 if swiglu else weight.shape[0], weight.shape[1]
    y = torch.empty(len(x), n, dtype=out, device=x.device)
    wide, warps, stages = (64, 4, 4) if swiglu else (128, 8, 3)
    codes, scale, form = _parts(weight)
    sizes = {"M": max(16, _power(len(x))), "N": wide, "STEP": 128, "num_warps": warps, "num_stages": stages}
    cuda_kernels.gemm_few[(-(-n // wide), 1)](x, codes, scale, y, len(x), n, k, 1, SWIGLU=swiglu, FORM=form, **sizes)
    return y


def _whole(qkv: Tensor, attention: Attention) -> Tensor:
    """A whole prompt of one session: nothing lies in pages that does not stand in `qkv`."""
    heads, kv_heads = attention.heads, attention.kv_heads
    parts = qkv.view(len(qkv), -1, attention.head).transpose(0, 1)[None]
    query, key, value = parts.split_with_sizes((heads, kv_heads, kv_heads), dim=1)
    out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != kv_heads)
    return out[0].transpose(0, 1).reshape(len(qkv), -1)


def _sizes(attention: Attention) -> dict[str, int]:
    return {"HEADS": attention.heads, "KV": attention.kv_heads, "D": attention.head, "PAGE": attention.page}


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _step(k: int, form: int) -> int:
    """Columns that one program takes at a time: of codes as many bytes as of numbers."""
    return min(4096 if form else 2048, _power(k))
