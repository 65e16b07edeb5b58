"""Sampling of a whole batch where the logits lie: one pass over the device for all sessions, one copy back.

The rules are engine.sampling's, token for token: greedy is the greatest logit; a draw goes over the kept tokens from
the most likely down, by the same counter-based number. What the most likely tokens do not settle, penalties, stop-id
masks and log probabilities go to engine.sampling, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine.draw import uniform
from paceline.engine.sampling import sample_rows
from paceline.engine.shard import Sampled, SampleRequest
from paceline.wire.sampling import SamplingParams

_LEAST, _MOST = float("-inf"), float("inf")
LOOK = 256
"""Tokens sorted; a draw that they do not settle is made again over all."""


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
    """The draw of each (row, request) with temperature > 0; -1 where the `LOOK` most likely tokens do not settle it.

    As `engine.sampling.draw`: weights relative to the greatest, cumulated in float64, equal ones by ascending id.
    """
    params = [request.params for _, request in wanted]
    columns = [
        [float(row) for row, _ in wanted],
        [one.temperature for one in params],
        [float(one.top_k or 0) for one in params],
        [one.top_p for one in params],
        [one.min_p for one in params],
        [uniform(request.params.seed, request.index) for _, request in wanted],
    ]
    device = logits.device
    rows, temperature, top_k, top_p, min_p, u = torch.tensor(columns, dtype=torch.float64).to(device)
    scores = logits.index_select(0, rows.long()).float()
    values, ids = _descending(scores, min(LOOK, scores.shape[1]))
    weights = ((values.double() - values[:, :1].double()) / temperature[:, None]).exp()
    cumulative = weights.cumsum(1)
    whole = ((scores.double() - values[:, :1].double()) / temperature[:, None]).exp().sum(1)
    look = values.shape[1]
    few = (top_k > 0) & (top_k <= look)
    total = torch.where(few, cumulative.gather(1, (top_k.long().clamp(1, look) - 1)[:, None])[:, 0], whole)
    keep = torch.where(few, top_k, float(look)).long()
    by_p = ((cumulative - weights) < (top_p * total)[:, None]).sum(1)
    keep = torch.where(top_p < 1.0, torch.minimum(keep, by_p), keep)
    by_least = (weights >= min_p[:, None]).sum(1)
    keep = torch.where(min_p > 0.0, torch.minimum(keep, by_least), keep).clamp(min=1)
    open_ended = (top_p == 1.0) & (min_p == 0.0)
    last = cumulative.gather(1, (keep - 1)[:, None])[:, 0]
    mass = torch.where(open_ended, total, last)
    at = torch.searchsorted(cumulative, (u * mass)[:, None], right=True)[:, 0]
    token = ids.gather(1, torch.minimum(at, keep - 1)[:, None])[:, 0]
    reach = cumulative[:, -1]
    settled = torch.where(open_ended, reach > u * total, (reach >= top_p * total) | (weights[:, -1] < min_p))
    settled |= few | (look == scores.shape[1])
    settled &= (top_k == 0) | few
    if look < scores.shape[1]:  # tokens beyond may be equal to the last of these, and come before it by their ids
        settled &= values.gather(1, torch.minimum(at, keep - 1)[:, None])[:, 0] > values[:, -1]
    return [int(found) for found in torch.where(settled, token, -1).tolist()]


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
