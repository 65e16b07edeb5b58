"""Who runs a span where: the lean path only where it can, and a choice that needs no GPU to be tested."""

from __future__ import annotations

import pytest

from paceline.engine import cuda_choice
from paceline.engine.cuda_shard import lean_arch
from paceline.store.manifest import Manifest
from paceline.store.store import Store


def test_auto_is_the_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_choice, "gpu_present", lambda: False)
    assert cuda_choice.resolved("auto") == "cpu"
    assert cuda_choice.resolved("cuda:1") == "cuda:1"
    monkeypatch.setattr(cuda_choice, "gpu_present", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cuda_choice.resolved("auto") == "cpu", "a driver, but a torch without CUDA"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cuda_choice.resolved("auto") == "cuda"


def test_numbers_follow_the_device_unless_they_are_named() -> None:
    assert cuda_choice.dtype_on("cuda:1", "auto") == "bf16"
    assert cuda_choice.dtype_on("cpu", "auto") == "f32"
    assert cuda_choice.dtype_on("cuda", "f32") == "f32"


def test_the_lean_path_is_for_bf16_on_a_gpu_with_a_compiler(
    tiny_store: tuple[Store, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, manifest = tiny_store
    assert cuda_choice.lean_shard(store, manifest, manifest.span, "cpu", "bf16", 100) is None
    assert cuda_choice.lean_shard(store, manifest, manifest.span, "cuda", "f32", 100) is None
    monkeypatch.setattr(cuda_choice, "can_compile", lambda: False)
    assert cuda_choice.lean_shard(store, manifest, manifest.span, "cuda", "bf16", 100) is None
    monkeypatch.setattr(cuda_choice, "can_compile", lambda: True)
    assert lean_arch(manifest, "cpu") is not None
    assert lean_arch(manifest, "cuda") is None, "heads of 8 do not fit the kernels"
    assert cuda_choice.lean_shard(store, manifest, manifest.span, "cuda", "bf16", 100) is None
