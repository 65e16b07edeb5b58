"""Conversion keeps every number, gives the same revision each time, and refuses what is not certified."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from paceline.engine.blocks import read_tensors
from paceline.engine.convert import from_model, open_source
from paceline.engine.gguf import llama_source
from paceline.engine.source import publish
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import UnsupportedModel
from paceline.wire.ids import Span


def parameters(store: Store, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Every stored parameter under transformers' full name."""
    named = [(f"model.layers.{at}.", block) for at, block in enumerate(manifest.layers)]
    found: dict[str, torch.Tensor] = {}
    for prefix, block in (*named, ("model.embed_tokens.", manifest.embed), ("", manifest.head)):
        for name, tensor in read_tensors(store.path(block.digest)).items():
            found[f"model.{name}" if not prefix and name.startswith("norm") else f"{prefix}{name}"] = tensor
    return found


def test_a_model_comes_out_as_it_went_in(tiny: LlamaForCausalLM, tiny_store: tuple[Store, Manifest]) -> None:
    stored, state = parameters(*tiny_store), tiny.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in state)


def test_the_same_weights_give_the_same_revision(
    tiny: LlamaForCausalLM, tiny_store: tuple[Store, Manifest], tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "hf")
    again = publish(Store(tmp_path / "store"), open_source(tmp_path / "hf"), "tiny")
    assert again.revision == tiny_store[1].revision
    assert publish(Store(tmp_path / "store"), from_model(tiny, "bf16"), "tiny").revision != again.revision


def test_tied_weights_are_stored_once(tiny: LlamaForCausalLM, tmp_path: Path) -> None:
    config = type(tiny.config)(**{**tiny.config.to_dict(), "tie_word_embeddings": True})
    model = LlamaForCausalLM(config).eval()
    store = Store(tmp_path)
    manifest = publish(store, from_model(model, "f32"), "tied")
    assert manifest.tied
    assert "lm_head.weight" not in parameters(store, manifest)
    shard = TorchShard.load(store, manifest, Span(5, 6))
    hidden = torch.randn(2, 32)
    with torch.inference_mode():
        want = model.lm_head(model.model.norm(hidden))
        torch.testing.assert_close(shard.logits(hidden), want)


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """A GGUF of the Llama architecture as llama.cpp lays it out, half its matrices quantised."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens = ["<unk>", "<s>", "</s>", *(chr(0x100 + at) for at in range(config.vocab_size - 4)), "\u0100\u0101"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *([1] * (len(tokens) - 3))])
    writer.add_token_merges(["\u0100 \u0101"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:
                array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        if "mlp" in name and array.shape[-1] % 32 == 0:
            quantised = gguf.quants.quantize(np.ascontiguousarray(array), gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(target, quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_direct_gguf_reader_is_transformers(tiny: LlamaForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    store = Store(tmp_path / "store")
    source = llama_source(path)
    stored, state = parameters(store, publish(store, source, "direct")), theirs.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in state)
    whole = theirs.config.to_dict()
    assert {key: value for key, value in source.config.items() if whole.get(key) != value} == {
        "architectures": ["LlamaForCausalLM"]
    }


def test_the_direct_tokenizer_is_transformers(tiny: LlamaForCausalLM, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    tokenizer = llama_source(path).tokenizer
    assert tokenizer is not None
    ours = Tokenizer.from_str(tokenizer.decode())
    for text in ("", "\u0100\u0101 <s>x</s>", "plain text 123", "<unk>"):
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


@pytest.mark.parametrize("name", ["config.json", "junk.gguf"])
def test_what_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"not a model")
    with pytest.raises(UnsupportedModel):
        open_source(tmp_path if name == "config.json" else tmp_path / name)


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    config = OPTConfig(vocab_size=32, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(UnsupportedModel, match="'opt' is not certified"):
        from_model(OPTForCausalLM(config), "f32")


def test_a_manifest_of_another_family_is_refused_before_it_runs(tiny_store: tuple[Store, Manifest]) -> None:
    store, manifest = tiny_store
    fields = json.loads(manifest.encode())
    for change in ({"family": "mamba"}, {"config": {**fields["config"], "layer_types": ["chunked_attention"] * 6}}):
        changed = type(manifest)(**{**{name: getattr(manifest, name) for name in manifest.__struct_fields__}, **change})
        with pytest.raises(UnsupportedModel):
            TorchShard.load(store, changed, Span(0, 1))


def test_blocks_of_another_shape_are_refused(tiny_store: tuple[Store, Manifest]) -> None:
    store, manifest = tiny_store
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    with pytest.raises(UnsupportedModel, match="do not fit"):
        TorchShard.load(store, Manifest(**{**fields, "layers": (manifest.head, *manifest.layers[1:])}), Span(0, 1))
