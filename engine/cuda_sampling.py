"""Sampling of a whole batch where the logits lie: one pass over the device for all sessions, one copy back.

The rules are engine.sampling's, token for token: greedy is the greatest logit; a draw is a race of the kept tokens, by
the same times. Where the most likely tokens do not settle who is kept, and for penalties, stop-id masks and log
probabilities, rows go to engine.sampling, one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine.draw import key
from paceline.engine.sampling import race_times, sample_rows
from paceline.engine.shard import Sampled, SampleRequest
from paceline.wire.sampling import SamplingParams

_LEAST, _MOST = float("-inf"), float("inf")
LOOK = 256
"""Tokens sorted for top-k and top-p; where they do not settle who is kept, all are."""


def sample_batch(
    logits: Tensor, best: Sequence[int], peak: Sequence[float], wanted: Sequence[tuple[int, SampleRequest]]
) -> list[Sampled | None]:
    """One token for each of `wanted` (row, request); None where that row's logits are not finite.

    `logits` ``[rows, vocab]``; `best`, `peak`: each row's greatest logit's id and value.
    """
    found: dict[int, Sampled | None] = {}
    drawn: list[int] = []
    seen: SamplingParams | None = None
    plain = greedy = False
    for at, (row, request) in enumerate(wanted):
        if request.params is not seen or seen.min_tokens:
            seen = request.params
            plain, greedy = _is_plain(request), seen.greedy
        if not _LEAST < peak[row] < _MOST:
            found[at] = None
        elif plain and greedy:
            found[at] = Sampled(best[row])
        elif plain:
            drawn.append(at)
    if len(found) == len(wanted):
        return list(found.values())
    if drawn:
        tokens = draw_rows(logits, [wanted[at] for at in drawn])
        found |= {at: Sampled(token) for at, token in zip(drawn, tokens, strict=True) if token >= 0}
    rest = [at for at in range(len(wanted)) if at not in found]
    if rest:
        rows = torch.tensor([wanted[at][0] for at in rest], device=logits.device)
        slow = sample_rows(logits[rows], [wanted[at][1] for at in rest])
        found |= dict(zip(rest, slow, strict=True))
    return [found[at] for at in range(len(wanted))]


def _is_plain(request: SampleRequest) -> bool:
    params = request.params
    masked = bool(params.stop_ids) and request.index - request.prompt_length < params.min_tokens
    return not (params.needs_history or masked or params.logprobs >= 0 or request.allowed is not None)


def draw_rows(logits: Tensor, wanted: Sequence[tuple[int, SampleRequest]]) -> list[int]:
    """The draw of each (row, request) with temperature > 0; -1 where the `LOOK` most likely tokens do not settle it."""
    found = [-1] * len(wanted)
    sorts = [bool(request.params.top_k) or request.params.top_p < 1.0 for _, request in wanted]
    for those, draws in ((False, _among_all), (True, _among_first)):
        mine = [at for at, sort in enumerate(sorts) if sort is those]
        if mine:
            for at, token in zip(mine, draws(logits, [wanted[at] for at in mine]), strict=True):
                found[at] = token
    return found


def _columns(logits: Tensor, wanted: Sequence[tuple[int, SampleRequest]]) -> tuple[Tensor, Tensor, Tensor]:
    """``[rows, vocab]`` scores; ``[4, rows, 1]`` temperature, top-k, top-p, min-p; ``[rows, 1]`` keys."""
    params = [request.params for _, request in wanted]
    columns = [[one.temperature, float(one.top_k or 0), one.top_p, one.min_p] for one in params]
    keys = [key(request.params.seed, request.index) for _, request in wanted]
    signed = [one - (1 << 64) if one >> 63 else one for one in keys]
    rows = torch.tensor([row for row, _ in wanted]).to(logits.device)
    numbers = torch.tensor(columns, dtype=torch.float64).to(logits.device).T[..., None]
    return logits.index_select(0, rows).float(), numbers, torch.tensor(signed).to(logits.device)[:, None]


def _among_all(logits: Tensor, wanted: Sequence[tuple[int, SampleRequest]]) -> list[int]:
    scores, (temperature, _, _, min_p), keys = _columns(logits, wanted)
    wide = scores.double()
    weights = ((wide - wide.amax(dim=1, keepdim=True)) / temperature).exp()
    weights = weights.where(weights >= min_p, 0.0)
    ids = torch.arange(scores.shape[1], device=scores.device)[None]
    return [int(token) for token in (race_times(keys, ids) / weights).argmin(dim=1).tolist()]


def _among_first(logits: Tensor, wanted: Sequence[tuple[int, SampleRequest]]) -> list[int]:
    scores, (temperature, top_k, top_p, min_p), keys = _columns(logits, wanted)
    values, ids = _descending(scores, min(LOOK, scores.shape[1]))
    peak, look = values[:, :1].double(), values.shape[1]
    weights = ((values.double() - peak) / temperature).exp()
    cumulative = weights.cumsum(1)
    whole = ((scores.double() - peak) / temperature).exp().sum(1, keepdim=True)
    few = (top_k > 0) & (top_k <= look)
    total = torch.where(few, cumulative.gather(1, top_k.long().clamp(1, look) - 1), whole)
    keep = torch.where(few, top_k, float(look)).long()
    by_p = ((cumulative - weights) < top_p * total).sum(1, keepdim=True)
    keep = torch.where(top_p < 1.0, torch.minimum(keep, by_p), keep)
    by_least = (weights >= min_p).sum(1, keepdim=True)
    keep = torch.where(min_p > 0.0, torch.minimum(keep, by_least), keep).clamp(min=1)
    kept = torch.arange(look, device=scores.device)[None] < keep
    race = torch.where(kept, race_times(keys, ids) / weights, _MOST)
    token = ids.gather(1, race.argmin(dim=1, keepdim=True))
    settled = few | (look == scores.shape[1])
    settled |= (top_k == 0) & ((cumulative[:, -1:] >= top_p * total) | (weights[:, -1:] < min_p))
    if look < scores.shape[1]:  # tokens beyond may be equal to the last of these, and come before it by their ids
        settled &= values.gather(1, keep - 1) > values[:, -1:]
    return [int(found) for found in torch.where(settled, token, -1)[:, 0].tolist()]


def _descending(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of each row ``(values, ids)``; equal values by ascending id, except past the k-th."""
    if k >= scores.shape[1]:
        return scores.sort(dim=1, descending=True, stable=True)
    values, ids = scores.topk(k, dim=1, sorted=False)
    ids, order = ids.sort(dim=1)
    return _by_value(values.gather(1, order), ids)


def _by_value(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)
