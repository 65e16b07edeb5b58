"""The lean span in plain torch on the CPU, in float32, against transformers' modules: families, batches, pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from paceline.engine.convert import from_model
from paceline.engine.cuda_arch import arch_of
from paceline.engine.cuda_shard import LeanShard
from paceline.engine.shard import Activations, SampleRequest, Work
from paceline.engine.source import publish
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import ContextOverflow, Overloaded, UnsupportedModel
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

GREEDY = SamplingParams()
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-3-rope": {"rope_parameters": LLAMA3},
    "llama-one-kv-head": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 6, "head_dim": 16},
    "qwen2": {},
    "qwen2-sliding": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen3": {"head_dim": 24},
}


def model_of(name: str) -> Any:
    """Random weights wide enough that tokens vary."""
    config = CONFIG_MAPPING[name.partition("-")[0]](**{**SMALL, **FAMILIES[name]})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    return model


def stored(name: str, folder: Path) -> tuple[Store, Manifest]:
    store = Store(folder)
    return store, publish(store, from_model(model_of(name), "f32"), f"tiny-{name}")


def lean(store: Store, manifest: Manifest, span: Span | None = None, positions: int = 1024, page: int = 4) -> LeanShard:
    return LeanShard.load(
        store, manifest, span or manifest.span, device="cpu", dtype="f32", kv_positions=positions, page=page, slots=8
    )


def poison(shard: LeanShard) -> LeanShard:
    """Nothing may be read that was not written."""
    shard.lean.kv.fill_(float("nan"))
    return shard


def rows(data: Activations) -> torch.Tensor:
    return torch.frombuffer(bytearray(data.data), dtype=torch.float32).view(data.n, data.hidden)


CHUNKS = ([5, 9, 33, 2, 71, 8, 1, 40, 12], [3], [17], [80, 4, 6], [2], [11])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_transformers_modules_compute(name: str, tmp_path: Path) -> None:
    """Chunks of a prompt and decode steps, past every window, in two spans, from poisoned pages."""
    store, manifest = stored(name, tmp_path)
    halves = (Span(0, 2), Span(2, 4))
    ours = [poison(lean(store, manifest, span)) for span in halves]
    theirs = [TorchShard.load(store, manifest, span) for span in halves]
    for shard in (*ours, *theirs):
        shard.open("s", 40)
    for ids in CHUNKS:
        results = []
        for head, tail in (ours, theirs):
            start = head.length("s")
            (middle,) = head.step([Work("s", start, ids=ids)])
            assert middle.activations is not None, middle.error
            request = SampleRequest(SamplingParams(logprobs=3), start + len(ids))
            (last,) = tail.step([Work("s", start, activations=middle.activations, sample=request)])
            results.append((rows(middle.activations), last.sampled))
        (mine, my_token), (other, token) = results
        torch.testing.assert_close(mine, other, rtol=2e-4, atol=2e-4)
        assert my_token is not None
        assert token is not None
        assert my_token.token == token.token
        assert my_token.logprob == pytest.approx(token.logprob, abs=1e-3)


def generate(shard: LeanShard | TorchShard, key: str, prompt: Sequence[int], n: int) -> list[int]:
    log, fresh = list(prompt), list(prompt)
    while len(log) < len(prompt) + n:
        (output,) = shard.step([Work(key, shard.length(key), ids=fresh, sample=SampleRequest(GREEDY, len(log)))])
        assert output.sampled is not None, output.error
        fresh = [output.sampled.token]
        log += fresh
    return log[len(prompt) :]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    return stored("llama", tmp_path_factory.mktemp("lean"))


def test_a_batch_is_its_members_one_by_one(tiny: tuple[Store, Manifest]) -> None:
    """Prompts of different lengths and decode steps in one call, then decode steps of all."""
    alone, together = poison(lean(*tiny)), poison(lean(*tiny))
    prompts = {"a": [5, 9, 33, 2, 71], "b": [8], "c": [1, 40, 12, 3, 17, 80, 4]}
    for shard in (alone, together):
        for key in prompts:
            shard.open(key, 32)
        generate(shard, "c", prompts["c"], 2)
    draws = SamplingParams(temperature=0.8, seed=7, top_p=0.9)
    works = [Work("a", 0, ids=prompts["a"], sample=SampleRequest(draws, 5))]
    works += [Work("b", 0, ids=prompts["b"], sample=SampleRequest(GREEDY, 1)), Work("c", 8, ids=[3])]
    assert [output.sampled for output in together.step(works)] == [alone.step([work])[0].sampled for work in works]
    for _ in range(3):
        works = [
            Work(key, together.length(key), ids=[7], sample=SampleRequest(draws, together.length(key) + 1))
            for key in prompts
        ]
        assert [output.sampled for output in together.step(works)] == [alone.step([work])[0].sampled for work in works]


def test_pages_are_given_back_and_what_lies_in_them_is_never_read(tiny: tuple[Store, Manifest]) -> None:
    shard = lean(*tiny, positions=64)
    shard.open("s", 30)
    want = generate(shard, "s", [5, 9, 33], 8)
    shard.open("t", 32)
    assert shard.kv_free == 0
    with pytest.raises(Overloaded):
        shard.open("u", 1)
    with pytest.raises(ContextOverflow):
        shard.open("u", 129)
    generate(shard, "t", [1, 2], 20)
    shard.close("s")
    poison(shard)
    shard.open("u", 30)
    assert generate(shard, "u", [5, 9, 33], 8) == want
    shard.crop("u", 3)
    assert generate(shard, "u", want[:1], 7) == want[1:]


def test_a_bad_row_fails_alone_and_leaves_no_trace(tiny: tuple[Store, Manifest]) -> None:
    tail, clean = lean(*tiny, Span(2, 4)), lean(*tiny, Span(2, 4))
    data = torch.randn(3, 32)
    good = Activations(3, 32, "f32", data.numpy().tobytes())
    data[1, 4] = float("inf")
    bad = Activations(3, 32, "f32", data.numpy().tobytes())
    for shard in (tail, clean):
        shard.open("good", 16)
        shard.open("bad", 16)
    asked = SampleRequest(GREEDY, 3)
    outputs = tail.step(
        [Work("bad", 0, activations=bad, sample=asked), Work("good", 0, activations=good, sample=asked)]
    )
    assert "finite" in outputs[0].error
    assert [tail.length(key) for key in ("bad", "good")] == [0, 3]
    (alone,) = clean.step([Work("good", 0, activations=good, sample=asked)])
    assert outputs[1].sampled == alone.sampled
    (again,) = tail.step([Work("bad", 0, activations=good, sample=asked)])
    assert again.sampled == alone.sampled


def test_what_is_not_lean_is_refused(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["llama"](**SMALL)
    assert arch_of(config) is not None
    for change in ({"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}):
        assert arch_of(CONFIG_MAPPING["llama"](**{**SMALL, **change})) is None
    assert arch_of(CONFIG_MAPPING["olmo2"](**SMALL)) is None
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["olmo2"](**SMALL), dtype=torch.float32)
    store = Store(tmp_path)
    manifest = publish(store, from_model(model, "f32"), "olmo")
    with pytest.raises(UnsupportedModel, match="lean"):
        lean(store, manifest)
