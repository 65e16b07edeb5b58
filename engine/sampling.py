"""From logits to a token: greedy, filters, penalties, a race of the kept. Knows tensors, and no sessions or models.

Order of operations, as in transformers: repetition, frequency and presence penalties, stop-id mask, grammar,
temperature, top-k, top-p, min-p. Then the kept tokens race: each has a time of its own, exponentially distributed and a
function of (seed, log index, token id) alone, and the least of time / weight wins, with its share of the weights as
probability (exponential races; the same as the Gumbel-max trick, Maddison, Tarlow & Minka, "A* sampling", 2014).

A race and no inverse of the cumulative distribution, because a replica computes the same logits only up to rounding:
there all slices behind a token move with its weight, and near-equal neighbours change places; in a race the winner
changes only where two were about to tie (docs/adr/0025-races.md). Log probabilities are of the raw logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.engine.draw import key
from paceline.engine.shard import Sampled, SampleRequest
from paceline.wire.sampling import SamplingParams

_FIRST_LOOK = 512
"""Tokens sorted before all of them are: nearly every top-p is among them, and sorting a vocabulary costs 3 ms."""

_GOLDEN, _FIRST, _SECOND = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_MASKS = {shift: (1 << (64 - shift)) - 1 for shift in (11, 27, 30, 31)}


@dataclass(frozen=True, slots=True)
class Kept:
    """Tokens that may be drawn, and their weights (float64, not normalised)."""

    ids: Tensor
    weights: Tensor


def sample_rows(logits: Tensor, requests: Sequence[SampleRequest]) -> list[Sampled | None]:
    """One token per row of `logits` ``[B, vocab]``; None for a row that is not finite. `logits` is not modified."""
    best = logits.argmax(dim=-1)
    peaks = torch.stack((logits.gather(1, best[:, None])[:, 0].double(), best.double())).tolist()
    rows = zip(requests, *peaks, strict=True)
    finite = float("-inf"), float("inf")
    return [
        _one(logits[at], request, int(token)) if finite[0] < peak < finite[1] else None
        for at, (request, peak, token) in enumerate(rows)
    ]


def _one(row: Tensor, request: SampleRequest, best: int) -> Sampled | None:
    params = request.params
    plain = not (params.needs_history or _masked(request))
    if params.greedy and plain:
        token = best
    else:
        scores = row.float() if plain else penalised(row, request)
        if not plain and not bool(scores.max() > float("-inf")):
            return None
        token = int(scores.argmax()) if params.greedy else draw(scores, params, request.index)
    if params.logprobs < 0:
        return Sampled(token)
    raw = torch.log_softmax(row.double(), dim=-1)
    ids = _descending(row.float(), params.logprobs)[1] if params.logprobs else row.new_empty(0, dtype=torch.long)
    top = tuple(zip(ids.tolist(), raw[ids].tolist(), strict=True))
    return Sampled(token, float(raw[token]), top)


def draw(scores: Tensor, params: SamplingParams, index: int) -> int:
    """Draw log index `index` from `scores` ``[vocab]`` with temperature > 0."""
    kept = kept_tokens(scores, params, _FIRST_LOOK) or kept_tokens(scores, params)
    assert kept is not None
    return int(kept.ids[(race_times(key(params.seed, index), kept.ids) / kept.weights).argmin()])


def race_times(start: int | Tensor, ids: Tensor) -> Tensor:
    """Exponentially distributed, float64, one for each of `ids` (int64), by the 64 bits of `start`.

    Splitmix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), its counter
    being the id. Integers wrap, so the bits are the same on every device.
    """
    if isinstance(start, int):
        start = start - (1 << 64) if start >> 63 else start
    z = (ids + 1) * _GOLDEN + start
    z = (z ^ _right(z, 30)) * _FIRST
    z = (z ^ _right(z, 27)) * _SECOND
    z = z ^ _right(z, 31)
    return -((_right(z, 11).double() + 0.5) * 2.0**-53).log()


def _right(z: Tensor, shift: int) -> Tensor:
    """The shift of an unsigned number."""
    return (z >> shift) & _MASKS[shift]


def kept_tokens(scores: Tensor, params: SamplingParams, look: int = 0) -> Kept | None:
    """The tokens that temperature and filters leave. Where they have to be sorted, only the first `look` are, if it is
    not 0, and the answer is None where these do not settle who is kept.
    """
    peak = scores.max().double()
    if not params.top_k and params.top_p == 1.0:
        weights = ((scores.double() - peak) / params.temperature).exp()
        ids = torch.arange(len(scores), device=scores.device)
        return Kept(ids, weights.where(weights >= params.min_p, 0.0) if params.min_p > 0.0 else weights)
    values, ids = _descending(scores, params.top_k or look or len(scores))
    weights = ((values.double() - peak) / params.temperature).exp()
    cumulative = weights.cumsum(0)
    total = float(cumulative[-1])
    if not params.top_k and len(ids) < len(scores):
        total = float(((scores.double() - peak) / params.temperature).exp().sum())
        if float(cumulative[-1]) < params.top_p * total and not float(weights[-1]) < params.min_p:
            return None
    keep = len(ids)
    if params.top_p < 1.0:
        keep = min(keep, int(((cumulative - weights) < params.top_p * total).sum()))
    if params.min_p > 0.0:
        keep = min(keep, int((weights >= params.min_p).sum()))
    keep = max(keep, 1)
    return Kept(ids[:keep], weights[:keep])


def penalised(row: Tensor, request: SampleRequest) -> Tensor:
    """Logits ``[vocab]`` after penalties and the stop-id mask, as a new float32 tensor."""
    params, scores = request.params, row.float().clone()
    if params.repetition_penalty != 1.0 and len(request.history):
        seen = torch.tensor(sorted(set(request.history)), device=row.device)
        was = scores[seen]
        scores[seen] = torch.where(was < 0, was * params.repetition_penalty, was / params.repetition_penalty)
    generated = request.history[request.prompt_length :]
    if (params.frequency_penalty or params.presence_penalty) and len(generated):
        counts = Counter(generated)
        amount = [n * params.frequency_penalty + params.presence_penalty for n in counts.values()]
        scores[list(counts)] -= torch.tensor(amount, device=row.device)
    masked = _masked(request)
    if masked:
        scores[list(masked)] = float("-inf")
    if request.allowed is not None:
        scores[~unpacked(request.allowed(), len(scores)).to(row.device)] = float("-inf")
    return scores


def unpacked(bits: bytes, size: int) -> Tensor:
    """`size` bits, the least significant of a byte first, as booleans; those that are missing are false."""
    packed = torch.frombuffer(bytearray(bits.ljust(-(-size // 8), b"\0")), dtype=torch.uint8)
    return (packed[:, None] >> torch.arange(8, dtype=torch.uint8)).bitwise_and(1).flatten()[:size].bool()


def _masked(request: SampleRequest) -> tuple[int, ...]:
    params = request.params
    return params.stop_ids if request.index - request.prompt_length < params.min_tokens else ()


def _descending(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest ``(values, ids)``, equal values by ascending id (topk alone leaves their order open)."""
    if k >= len(scores):
        values, ids = scores.sort(descending=True, stable=True)
        return values, ids
    least = scores.topk(k).values[-1]
    near = (scores >= least).nonzero()[:, 0]
    values, order = scores[near].sort(descending=True, stable=True)
    return values[:k], near[order[:k]]
