"""Coded weights stand for nearly what was coded; a shard over them computes with exactly what they stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.engine import cuda_choice, cuda_weights
from paceline.engine.cuda_matrix import FORMS, GROUP, Coded, coded, dense
from paceline.engine.cuda_shard import LeanShard, lean_arch
from paceline.engine.loading import LoadConfig, load_service
from paceline.engine.shard import SampleRequest, Weights, Work
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import InvalidRequest, UnsupportedModel
from paceline.wire.sampling import SamplingParams

BYTES = {"int8": 1.0, "fp8": 1.0, "int4": 0.625}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), out=st.integers(1, 40), groups=st.integers(1, 5), size=st.sampled_from([1e-6, 1, 1e4])
)
def test_each_number_is_within_half_a_step(form: Weights, seed: int, out: int, groups: int, size: float) -> None:
    weight = torch.randn(out, groups * GROUP, generator=torch.Generator().manual_seed(seed)) * size
    found = coded(weight, form)
    assert isinstance(found, Coded)
    assert found.shape == tuple(weight.shape)
    off = (found.dense(torch.float32) - weight).abs()
    greatest = weight.abs().amax(dim=1, keepdim=True)
    if form == "int8":
        assert bool((off <= greatest / 127 * 0.5001).all())
    elif form == "fp8":  # three bits behind the leading one; the least steps near zero
        assert bool((off <= torch.maximum(weight.abs() / 16, greatest / 448 * 2**-10) * 1.0001).all())
    else:  # half a step of the group, and what bfloat16 takes from the step and the least value
        wide = weight.view(out, groups, GROUP)
        step = (wide.amax(dim=2) - wide.amin(dim=2)) / 15
        bound = step * 0.5 + (15 * step + wide.abs().amax(dim=2)) * 2**-7
        assert bool((off.view(out, groups, GROUP) <= bound[..., None] + 1e-11).all())


@pytest.mark.parametrize("form", FORMS)
def test_a_large_matrix_is_coded_in_pieces_to_the_same_codes(form: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(70, 64, generator=torch.Generator().manual_seed(1))
    whole = coded(weight, form)
    monkeypatch.setattr("paceline.engine.cuda_matrix._ROWS", 16)
    assert torch.equal(dense(coded(weight, form), torch.float32), dense(whole, torch.float32))
    assert whole.nbytes == 70 * 64 * BYTES[form] + (0 if form == "int4" else 4 * 70)


def test_what_cannot_be_coded_is_told() -> None:
    odd = coded(torch.ones(3, GROUP + 1), "int4")
    assert isinstance(odd, Coded)
    assert odd.codes.dtype == torch.int8
    assert torch.equal(odd.dense(torch.float32), torch.ones(3, GROUP + 1))
    zero = coded(torch.zeros(2, GROUP), "int4")
    assert torch.equal(dense(zero, torch.float32), torch.zeros(2, GROUP))
    with pytest.raises(ValueError, match="no form"):
        coded(torch.ones(1, GROUP), "bf16")


@pytest.mark.parametrize("form", FORMS)
def test_a_shard_computes_with_what_its_codes_stand_for(form: Weights, tiny_store: tuple[Store, Manifest]) -> None:
    """Plain torch over codes, against plain torch over the numbers; the class is announced."""
    store, manifest = tiny_store
    arch = lean_arch(manifest, "cpu")
    assert arch is not None
    place = torch.device("cpu")
    shards = [LeanShard.load(store, manifest, manifest.span, device="cpu", dtype="f32", slots=2, form=form)]
    weights = cuda_weights.load(
        store, manifest, arch, manifest.span, place, torch.float32, shards[0].shape.max_context, form
    )
    assert isinstance(weights.lm_head, Coded)
    assert weights.lm_head.least is None, "a head in 4 bits costs more than all layers"
    assert isinstance(weights.layers[0].o, Coded)
    assert (weights.layers[0].o.least is not None) == (form == "int4")
    numbers = replace(
        weights,
        layers=tuple(
            replace(
                layer, **{name: dense(getattr(layer, name), torch.float32) for name in ("qkv", "o", "gate_up", "down")}
            )
            for layer in weights.layers
        ),
        lm_head=None if weights.lm_head is None else dense(weights.lm_head, torch.float32),
    )
    shards.append(LeanShard.over(arch, numbers, manifest.span, shards[0].shape, "f32", 1024, slots=2))
    logits = []
    for shard in shards:
        shard.open("s", 32)
        for start, ids in ((0, [5, 9, 33, 2, 71]), (5, [8]), (6, [1])):
            shard.step([Work("s", start, ids=ids, sample=SampleRequest(SamplingParams(), start + len(ids)))])
            assert shard.logits is not None
            logits.append(shard.logits.clone())
    for mine, theirs in zip(logits[:3], logits[3:], strict=True):
        torch.testing.assert_close(mine, theirs)
    assert shards[0].numerics == f"cpu-f32-{form}"


def test_a_form_that_a_device_does_not_multiply_is_refused(
    tiny_store: tuple[Store, Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="for GPUs"):
        load_service(tiny_store[0], LoadConfig(model=tiny_store[1].name, weights="fp8"), lambda *_: None)
    with pytest.raises(InvalidRequest, match="computes in"):
        cuda_choice.check_weights("cuda", "bf16")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 6))
    with pytest.raises(InvalidRequest, match="no fp8"):
        cuda_choice.check_weights("cuda:0", "fp8")
    cuda_choice.check_weights("cuda", "int4")
    for more in ({}, {"tensor_parallel": 2}):  # heads of 8, or two ranks: transformers' modules would ignore the form
        config = LoadConfig(model=tiny_store[1].name, device="cuda", dtype="bf16", weights="int8", **more)
        with pytest.raises(UnsupportedModel, match="our own kernels"):
            load_service(tiny_store[0], config, lambda *_: None)
