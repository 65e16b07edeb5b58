"""Is the lean path right on this GPU? Fewer layers at full width, against transformers over the same weights.

The reference is float32 (without TF32); transformers' own bf16 run says what rounding alone does. Pages start as NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gpu_models import config_of, densified, lean_shard, random_weights, transformers_model
from paceline.engine.cuda_shard import LeanShard
from paceline.engine.shard import Activations, SampleRequest, Weights, Work
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

Judge = Callable[[str, bool, str], None]

_LAYERS = 4
_GREEDY = SamplingParams()
_CHUNKS = (100, 37, 300, 1)
"""A prompt in pieces: each after the first attends to pages."""
_STEPS = 40


def off(found: Tensor, exact: Tensor) -> float:
    """Relative distance; NaN where either has one."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@torch.inference_mode()
def check(shape: str, judge: Judge, form: Weights = "f32") -> None:
    """Print and judge. Weights in a `form` are judged by transformers over the numbers that they stand for."""
    torch.backends.cuda.matmul.allow_tf32 = False
    config = config_of(shape, _LAYERS)
    coded = random_weights(config).coded(form)
    weights = coded if form == "f32" else densified(coded, torch.float32)
    ids = torch.randint(10, config.vocab_size, (sum(_CHUNKS) + _STEPS,), generator=torch.Generator().manual_seed(5))
    log: list[int] = ids.tolist()
    exact = transformers_model(config, weights, "eager", torch.float32)(ids[None].cuda()).logits[0]
    bf16 = transformers_model(config, weights, "eager", torch.bfloat16)
    rounding = off(bf16(ids[None].cuda()).logits[0], exact)
    shard = lean_shard(config, coded, positions=16_384, form=form)
    shard.lean.kv.fill_(float("nan"))
    alone = follow(shard, "alone", log)
    rows = [sum(_CHUNKS[: at + 1]) - 1 for at in range(len(_CHUNKS))] + list(range(sum(_CHUNKS), len(log)))
    error = off(alone, exact[rows])
    shown = f"{error:.2e}, transformers in bf16 {rounding:.2e} (relative to float32)"
    judge("logits of chunks and decode steps", error <= 1.5 * rounding, shown)
    for many in (3, 16, 64, 100):
        together = beside(shard, log, many)
        error = off(together, exact[rows])
        judge(
            f"the same among {many} sessions",
            error <= 1.5 * rounding,
            f"{error:.2e}, from alone {off(together, alone):.2e}",
        )
    halves = [lean_shard(config, coded, half, 4096, form) for half in (Span(0, 2), Span(2, 4))]
    error = off(ring(halves, log), exact[rows])
    judge("in two spans, over the wire's bytes", error <= 1.5 * rounding, f"{error:.2e}")
    check_greedy(shard, bf16, log[:200], judge)


def follow(shard: LeanShard, key: str, log: Sequence[int]) -> Tensor:
    """Logits after each chunk and each step of `log`, teacher-forced."""
    shard.open(key, len(log))
    found, at = [], 0
    for n in (*_CHUNKS, *[1] * _STEPS):
        ids = log[at : at + n]
        shard.step([Work(key, at, ids=ids, sample=SampleRequest(_GREEDY, at + n))])
        assert shard.logits is not None
        found.append(shard.logits[0].clone())
        at += n
    shard.close(key)
    return torch.stack(found)


def beside(shard: LeanShard, log: Sequence[int], many: int) -> Tensor:
    """As `follow`, in the middle of other sessions of other lengths and texts."""
    keys = list(range(many))
    mine = many // 2
    texts = [log if key == mine else [(token * (key + 3)) % shard.shape.vocab for token in log] for key in keys]
    found = []
    for key in keys:
        shard.open(key, len(log) if key == mine else 128)
    at = 0
    for n in (*_CHUNKS, *[1] * _STEPS):
        works = []
        for key in keys:
            start = shard.length(key)
            take = n if key == mine else min(n, 1 + key % 7)
            if start + take <= 128 or key == mine:
                request = SampleRequest(_GREEDY, start + take)
                works.append(Work(key, start, ids=texts[key][start : start + take], sample=request))
        shard.step(works)
        assert shard.logits is not None
        found.append(shard.logits[[work.key for work in works].index(mine)].clone())
        at += n
    for key in keys:
        shard.close(key)
    return torch.stack(found)


def ring(shards: Sequence[LeanShard], log: Sequence[int]) -> Tensor:
    """As `follow`, through two shards that pass bytes."""
    head, tail = shards
    for shard in shards:
        shard.lean.kv.fill_(float("nan"))
        shard.open("s", len(log))
    found, at = [], 0
    for n in (*_CHUNKS, *[1] * _STEPS):
        (middle,) = head.step([Work("s", at, ids=log[at : at + n])])
        carried: Activations | None = middle.activations
        tail.step([Work("s", at, activations=carried, sample=SampleRequest(_GREEDY, at + n))])
        assert tail.logits is not None
        found.append(tail.logits[0].clone())
        at += n
    return torch.stack(found)


def check_greedy(shard: LeanShard, bf16: Any, prompt: Sequence[int], judge: Judge, n: int = 64) -> None:
    """Greedy tokens of transformers' eager bf16, and ours after the same: equal, or closer than rounding tells."""
    cache, fresh, logits, theirs = None, list(prompt), [], []
    for _ in range(n):
        out = bf16(torch.tensor([fresh], device="cuda"), past_key_values=cache, use_cache=True)
        cache, last = out.past_key_values, out.logits[0, -1].float()
        fresh = [int(last.argmax())]
        logits.append(last)
        theirs.append(fresh[0])
    shard.open("greedy", len(prompt) + n)
    fresh, same, gaps = list(prompt), 0, []
    for token, row in zip(theirs, logits, strict=True):
        start = shard.length("greedy")
        (output,) = shard.step([Work("greedy", start, ids=fresh, sample=SampleRequest(_GREEDY, start + len(fresh)))])
        assert output.sampled is not None
        assert shard.logits is not None
        same += output.sampled.token == token
        noise = float((shard.logits[0] - row).std())
        gaps.append(float(row[token] - row[output.sampled.token]) / max(noise, 1e-9))
        fresh = [token]
    shard.close("greedy")
    shown = f"{same}/{n} equal; where not, theirs led by at most {max(gaps):.1f} × the two runs' rounding"
    judge("greedy tokens as transformers' eager in bf16", same >= 0.9 * n and max(gaps) <= 6.0, shown)
