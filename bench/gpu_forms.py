"""What do coded weights gain on a GPU? Each form of engine.cuda_matrix, checked, then timed beside bf16.

Part of ``python -m bench.engine --shape llama-8b --random --forms``. Bars: every check; one session's decode in each
form faster than in bf16. Beside it: the share of the rate at which a form's own bytes can be read.
"""

from __future__ import annotations

from statistics import median

import torch

from bench import gpu_check, gpu_limits
from bench.gpu_bars import Bars, prefill_seconds, run_sessions
from bench.gpu_models import config_of, lean_shard, random_weights
from paceline.engine.cuda_choice import check_weights
from paceline.engine.cuda_matrix import FORMS
from paceline.engine.cuda_weights import SpanWeights
from paceline.engine.shard import Weights
from paceline.wire.errors import InvalidRequest

_PROMPT, _LONG, _SESSIONS = 128, 2048, (1, 2, 8, 16, 64, 128)


def run(shape: str) -> int:
    """Measure and judge; 0 where every bar was met, else 1."""
    bars = Bars()
    rate, _ = gpu_limits.read_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, reads {rate / 1e12:.2f} TB/s", flush=True)
    forms = [form for form in FORMS if _runs_here(form)]
    for form in forms:
        gpu_check.check(shape, lambda what, good, shown, form=form: bars.judge(f"{form}: {what}", good, shown), form)
    config = config_of(shape)
    weights = random_weights(config)
    plain_s = 0.0
    both: tuple[Weights, ...] = ("f32", *forms)
    print(f"\nms a step, by sessions {_SESSIONS}; prefill of {_LONG}, ms")
    for form in both:
        taken = _form(bars, config, weights, form, rate, plain_s)
        plain_s = plain_s or taken
    print("all bars met" if not bars.missed else f"{len(bars.missed)} missed: {'; '.join(bars.missed)}")
    return 1 if bars.missed else 0


def _form(bars: Bars, config: object, weights: SpanWeights, form: Weights, rate: float, plain_s: float) -> float:
    """One row of the table; seconds of one session's step. `plain_s`: the same in bf16."""
    shard = lean_shard(config, weights.coded(form), form=form)
    shard.warm()
    floor = shard.lean.weights.nbytes / rate
    taken = [median(run_sessions(shard, many, _PROMPT, 32)[1][4:]) for many in _SESSIONS]
    cells = "  ".join(f"{each * 1e3:6.2f}" for each in taken)
    prefill = prefill_seconds(shard, _LONG, 3)
    name = "bf16" if form == "f32" else form
    print(f"   {name:5s} {shard.lean.weights.nbytes / 1e9:5.2f} GB  {cells}   {prefill * 1e3:6.1f}", flush=True)
    if plain_s:
        shown = (
            f"{taken[0] * 1e3:.2f} ms, {plain_s / taken[0]:.2f} × as fast as bf16, {floor / taken[0]:.0%} of the rate"
        )
        bars.judge(f"{form}: one session", taken[0] < plain_s, shown)
    del shard
    torch.cuda.empty_cache()
    return taken[0]


def _runs_here(form: Weights) -> bool:
    try:
        check_weights("cuda", form)
    except InvalidRequest as error:
        print(f"{form}: {error.message}")
        return False
    return True
