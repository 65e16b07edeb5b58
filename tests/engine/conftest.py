"""A tiny random Llama in a store, made once."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.engine.convert import from_model
from paceline.engine.source import publish
from paceline.store.manifest import Manifest
from paceline.store.store import Store

torch.set_num_threads(1)
"""Small matrices, busy machine: a second thread only waits."""


def tiny_llama() -> LlamaForCausalLM:
    """6 layers, grouped heads, wide enough weights that tokens vary."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def tiny() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def tiny_store(tiny: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    store = Store(tmp_path_factory.mktemp("store"))
    return store, publish(store, from_model(tiny, "f32"), "tiny")
