"""Sampling against transformers' processors, its own distribution, and itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from paceline.engine.draw import key, uniform
from paceline.engine.sampling import draw, kept_tokens, penalised, race_times, sample_rows
from paceline.engine.shard import SampleRequest
from paceline.wire.sampling import SamplingParams

VOCAB = 700


def logits(seed: int, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3


def ours(row: torch.Tensor, request: SampleRequest) -> torch.Tensor:
    """The whole distribution that a draw is made from."""
    kept = kept_tokens(penalised(row, request), request.params)
    assert kept is not None
    out = torch.zeros(len(row), dtype=torch.float64)
    out[kept.ids] = kept.weights / kept.weights.sum()
    return out


def theirs(row: torch.Tensor, request: SampleRequest) -> torch.Tensor:
    params = request.params
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        chain.append(MinPLogitsWarper(params.min_p))
    scores = chain(torch.tensor([list(request.history)]), row[None].double().clone())
    return torch.softmax(scores[0], dim=-1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 3.0),
    top_k=st.sampled_from([0, 1, 7, 200, VOCAB]),
    top_p=st.sampled_from([0.05, 0.5, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    penalty=st.sampled_from([1.0, 0.7, 1.4]),
)
def test_distribution_is_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    request = SampleRequest(params, 6, [1, 5, 5, 9, 200, 3], 2)
    torch.testing.assert_close(ours(logits(seed), request), theirs(logits(seed), request), atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.1, 1.0, 5.0, 50.0]),
    top_p=st.sampled_from([0.5, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.2]),
    index=st.integers(0, 2000),
)
def test_the_short_look_draws_what_the_full_sort_draws(
    seed: int, temperature: float, top_p: float, min_p: float, index: int
) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, min_p=min_p, seed=seed)
    row = logits(seed, 5000)
    full = kept_tokens(row, params)
    assert full is not None
    won = (race_times(key(seed, index), full.ids) / full.weights).argmin()
    assert draw(row, params, index) == int(full.ids[won])


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 4,000 draws with fixed seeds: 99.9 % point of 19 degrees of freedom is 43.8."""
    row, params, n = logits(3, 20) / 2, SamplingParams(temperature=1.0, seed=11), 4000
    expected = torch.softmax(row.double(), 0) * n
    got = torch.bincount(torch.tensor([draw(row, params, index) for index in range(n)]), minlength=20)
    assert float(((got - expected) ** 2 / expected).sum()) < 43.8


def test_uniform_is_a_pinned_function_of_seed_and_index() -> None:
    values = [uniform(7, index) for index in range(2000)]
    assert all(0.0 <= value < 1.0 for value in values)
    assert abs(sum(values) / 2000 - 0.5) < 0.02
    assert len(set(values)) == 2000
    assert uniform(7, 3) == uniform(7, 3) != uniform(8, 3)
    assert uniform(1, 2) == float.fromhex("0x1.6b36cf2834020p-3")


def test_race_times_are_pinned_and_exponential() -> None:
    def splitmix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    ids = torch.arange(50_000)
    for start in (key(1, 2), 0, 2**63, 2**64 - 1):
        times = race_times(start, ids)
        for at in (0, 1, 7, 49_999):
            bits = splitmix((start + (at + 1) * 0x9E3779B97F4A7C15) % 2**64)
            assert float(times[at]) == pytest.approx(-math.log(((bits >> 11) + 0.5) * 2**-53), rel=1e-12)
        assert abs(float(times.mean()) - 1) < 0.03
        assert abs(float(times.std()) - 1) < 0.03
        assert torch.equal(times[100:200], race_times(start, ids[100:200]))


def test_rounding_changes_next_to_no_draw() -> None:
    """What a replica's logits differ by, on a distribution where it matters most. The inverse of the cumulative
    distribution over sorted tokens, which a draw was before, gave another token in 297 of 300 of these draws."""
    row, noise = (torch.randn(30_000, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(200)]
    before = [draw(0.01 * row, one, 5) for one in params]
    assert sum(draw(0.01 * row + 3e-5 * noise, one, 5) != was for one, was in zip(params, before, strict=True)) <= 1
    assert sum(draw(0.01 * row + 3e-4 * noise, one, 5) != was for one, was in zip(params, before, strict=True)) <= 1


def test_equal_logits_go_by_id() -> None:
    row = torch.zeros(3000)
    assert [draw(row, SamplingParams(temperature=1.0, top_k=2, seed=s), 0) < 2 for s in range(20)] == [True] * 20
    kept = kept_tokens(row, SamplingParams(temperature=1.0, top_k=5))
    assert kept is not None
    assert kept.ids.tolist() == [0, 1, 2, 3, 4]


def test_frequency_and_presence_count_generated_tokens_only() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    row = torch.zeros(10)
    scores = penalised(row, SampleRequest(params, 5, [1, 2, 3, 3, 4], 2))
    assert scores.tolist() == [0, 0, 0, -1.25, -0.75, 0, 0, 0, 0, 0]
    assert row.tolist() == [0.0] * 10


def test_stop_ids_are_masked_until_min_tokens() -> None:
    row = torch.arange(10.0)
    params = SamplingParams(stop_ids=(9, 8), min_tokens=3)
    answers = sample_rows(row.repeat(2, 1), [SampleRequest(params, 4, (), 2), SampleRequest(params, 5, (), 2)])
    assert [answer.token for answer in answers if answer] == [7, 9]


def test_rows_are_independent_and_bad_rows_are_named() -> None:
    rows = torch.stack([logits(1), torch.full((VOCAB,), float("nan")), logits(2)])
    requests = [SampleRequest(SamplingParams(), 0), SampleRequest(SamplingParams(), 0)]
    requests.append(SampleRequest(SamplingParams(temperature=0.8, seed=4), 3))
    first, bad, last = sample_rows(rows, requests)
    assert bad is None
    assert first is not None
    assert first.token == int(logits(1).argmax())
    assert last == sample_rows(rows[2:], requests[2:])[0]


def test_logprobs_are_of_the_raw_distribution() -> None:
    params = SamplingParams(temperature=0.3, top_k=4, logprobs=3, seed=1)
    answer = sample_rows(logits(5)[None], [SampleRequest(params, 0)])[0]
    raw = torch.log_softmax(logits(5).double(), 0)
    assert answer is not None
    assert answer.logprob == pytest.approx(float(raw[answer.token]))
    assert [token for token, _ in answer.top] == raw.topk(3).indices.tolist()
    assert [value for _, value in answer.top] == pytest.approx(raw.topk(3).values.tolist())
