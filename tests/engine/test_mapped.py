"""Layers beyond the budget run from the files: the same numbers, and not this process's own memory."""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.parity_shards import tiny_model
from paceline.engine.convert import from_model
from paceline.engine.loading import LoadConfig, load_service
from paceline.engine.mapped import MappedExperts, MappedLinear, resident
from paceline.engine.shard import Work
from paceline.engine.source import publish
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import InvalidRequest
from paceline.wire.messages import Dtype

WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}


@given(st.lists(st.integers(1, 100), max_size=12), st.integers(0, 100), st.integers(0, 1500))
def test_what_is_held_fits_and_no_more_would(sizes: list[int], last: int, budget: int) -> None:
    held, tail = resident(sizes, last, budget)
    used = sum(sizes[:held]) + (last if tail else 0)
    assert used <= budget
    assert tail or last > budget
    assert held == len(sizes) or used + sizes[held] > budget


def published(arch: str, folder: Path, dtype: Dtype) -> tuple[Store, Manifest]:
    store = Store(folder / "store")
    return store, publish(store, from_model(tiny_model(arch, folder / "hf"), dtype), f"tiny-{arch}")


def logits(shard: TorchShard) -> torch.Tensor:
    shard.open("s", 32)
    found = []
    for start, end in ((0, 9), (9, 12), (12, 13), (13, 14)):
        work = Work("s", start, ids=[at * 7 % 200 + 3 for at in range(start, end)])
        with torch.inference_mode():
            rows = shard.input(work)
            assert rows is not None
            found.append(shard.logits(shard.forward([work], rows)))
    return torch.cat(found)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("arch", ["llama", "gemma2", "mixtral", "gpt_oss"])
def test_layers_run_from_the_file_say_the_same(arch: str, dtype: Dtype, tmp_path: Path) -> None:
    """The file holds float32 or bfloat16; both are computed in float32."""
    store, manifest = published(arch, tmp_path, dtype)
    whole = TorchShard.load(store, manifest, manifest.span)
    layer = manifest.layers[0].size * (2 if dtype == "bf16" else 1)
    want = logits(whole)
    for budget in (1, 3 * layer):
        some = TorchShard.load(store, manifest, manifest.span, budget=budget)
        assert some.numerics == whole.numerics == "cpu-f32"
        layers = [module for module, _ in some._layers]
        from_file = [any(isinstance(part, MappedLinear) for part in it.modules()) for it in layers]
        assert 4 <= sum(from_file) <= 6
        assert from_file == sorted(from_file), "the first ones are held"
        assert (want - logits(some)).abs().max() <= 2e-4 * want.std()


def test_of_experts_only_the_chosen_are_made_wider() -> None:
    whole = torch.randn(4, 3, 2).to(torch.bfloat16)
    experts = MappedExperts(whole, torch.float32)
    assert torch.equal(experts[torch.tensor(2)], whole[2].float())


def own_memory() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) * 1024


def grown(folder: Path, budget: int | None) -> int:
    """What a span's weights take of this process's own memory."""
    store = Store(folder)
    manifest = store.manifest("wide")
    before = own_memory()
    shard = TorchShard.load(store, manifest, manifest.span, budget=budget)
    logits(shard)
    return own_memory() - before


def test_what_runs_from_the_file_is_not_this_process_s_own(tmp_path: Path) -> None:
    """In processes of their own: one that has freed memory before fills that first, and shows no growth."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, num_attention_heads=8, max_position_embeddings=64, **WIDE))
    manifest = publish(Store(tmp_path), from_model(model.eval(), "f32"), "wide")
    packed = sum(block.size for block in manifest.layers)
    assert packed > 40e6
    with ProcessPoolExecutor(mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        from_file, own = fresh.map(grown, (tmp_path, tmp_path), (1, None))
    assert own - from_file > 0.7 * packed


def test_forms_that_only_memory_holds_are_refused(tiny_store: tuple[Store, Manifest]) -> None:
    store, manifest = tiny_store
    config = LoadConfig(model=manifest.revision.hex(), weights_bytes=1, weights="int4")
    with pytest.raises(InvalidRequest, match="leave out --weights-gb"):
        load_service(store, config, lambda *_: None)
