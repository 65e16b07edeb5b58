"""GGUF files of the Llama architecture, read directly: no torch, no transformers, and so quick and version-proof.

Bit-identical to what transformers makes of the same file (tests/engine/test_convert.py, on a small one).
Other architectures go through transformers (engine.convert).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paceline.engine.source import Part, RawTensor, Source
from paceline.wire.errors import UnsupportedModel

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NAMES = {"output_norm": "norm", "output": "lm_head"}
_CONTROL, _USER_DEFINED = 3, 4
"""Token types of the GGUF specification that are matched before the text is split."""


def architecture(path: Path) -> str:
    """What a GGUF file says it is. Raises UnsupportedModel for anything else."""
    return str(_Reader(path).get("general.architecture"))


def llama_source(path: Path) -> Source:
    """Raises UnsupportedModel for what this reader would have to guess at."""
    file = _Reader(path)
    if file.get("general.architecture") != "llama" or file.get("tokenizer.ggml.model") != "gpt2":
        raise UnsupportedModel(f"{path.name} is not a Llama-architecture GGUF with a byte-level tokenizer")
    if "rope_freqs.weight" in file.tensors or file.get("llama.rope.scaling.type", "none") != "none":
        raise UnsupportedModel(f"{path.name} scales its rotary embedding", cure="use the safetensors form of the model")
    config = _config(file)
    texts: dict[str, Any] = {key: file.token(f"tokenizer.ggml.{name}_token_id") for key, name in _SPECIAL.items()}
    texts["chat_template"] = file.get("tokenizer.chat_template")
    texts["add_bos_token"] = bool(file.get("tokenizer.ggml.add_bos_token", False))
    return Source(
        config=config,
        dtype="f32",
        tensors=lambda part: _tensors(file, config, part),
        tied=bool(config["tie_word_embeddings"]),
        tokenizer=_tokenizer(file),
        tokenizer_config={key: value for key, value in texts.items() if value is not None},
        eos_ids=(int(file.get("tokenizer.ggml.eos_token_id")),),
    )


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class _Reader:
    """The fields and tensors of one file, mapped."""

    def __init__(self, path: Path) -> None:
        import gguf

        try:
            self._file = gguf.GGUFReader(path)
        except (ValueError, KeyError, IndexError, OSError) as error:
            raise UnsupportedModel(f"{path} is not a GGUF file: {error}") from error
        self._dequantize = gguf.dequantize
        self.tensors = {tensor.name: tensor for tensor in self._file.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        found = self._file.fields.get(key)
        return default if found is None else found.contents()

    def token(self, key: str) -> str | None:
        at = self.get(key)
        return None if at is None else str(self.get("tokenizer.ggml.tokens")[int(at)])

    def array(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        tensor = self.tensors[name]
        return np.asarray(self._dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)


def _config(file: _Reader) -> dict[str, Any]:
    heads, hidden = int(file.get("llama.attention.head_count")), int(file.get("llama.embedding_length"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id"),
        "head_dim": int(file.get("llama.rope.dimension_count", hidden // heads)),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(file.get("llama.feed_forward_length")),
        "max_position_embeddings": int(file.get("llama.context_length")),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": int(file.get("llama.block_count")),
        "num_key_value_heads": int(file.get("llama.attention.head_count_kv", heads)),
        "rms_norm_eps": float(file.get("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_theta": float(file.get("llama.rope.freq_base", 10_000.0)), "rope_type": "default"},
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": len(file.get("tokenizer.ggml.tokens")),
    }


def _tensors(file: _Reader, config: dict[str, Any], part: Part) -> list[RawTensor]:
    if part == "embed":
        return [_raw("weight", file.array("token_embd.weight"))]
    names = _HEAD_NAMES if part == "head" else _LAYER_NAMES
    prefix = "" if part == "head" else f"blk.{part}."
    found = []
    for stem, target in names.items():
        for kind in ("weight", "bias"):
            name = f"{prefix}{stem}.{kind}"
            if name in file.tensors:
                found.append(_raw(f"{target}.{kind}", _unpermuted(file.array(name), stem, config)))
    return found


def _unpermuted(array: np.ndarray[Any, Any], stem: str, config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """llama.cpp keeps rotary pairs side by side; transformers keeps the two halves of a head apart."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(stem)
    if heads is None:
        return array
    half = array.shape[0] // heads // 2
    return array.reshape(heads, half, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _raw(name: str, array: np.ndarray[Any, Any]) -> RawTensor:
    flat = np.ascontiguousarray(array, dtype="<f4")
    return RawTensor(name, "F32", tuple(array.shape), flat.reshape(-1).view(np.uint8).data)


def _tokenizer(file: _Reader) -> bytes:
    """tokenizer.json of a byte-level BPE, as transformers builds it from the same fields."""
    tokens: Sequence[str] = file.get("tokenizer.ggml.tokens")
    kinds: Sequence[int] = file.get("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": at, "content": token, **flags, "special": kind == _CONTROL}
        for at, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    prefix_space = bool(file.get("tokenizer.ggml.add_space_prefix", False))
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "add_prefix_space": prefix_space},
            "post_processor": None,
            "decoder": {**byte_level, "add_prefix_space": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: at for at, token in enumerate(tokens)},
                "merges": [merge.split(" ", 1) for merge in file.get("tokenizer.ggml.merges")],
            },
        },
        separators=(",", ":"),
        ensure_ascii=True,
    ).encode()
