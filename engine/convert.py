"""Hugging Face folders and GGUF files → sources of a store. Knows transformers; runs once, where a model is published.

Parameters are read through transformers' own loading, so renamed, split and fused checkpoints come out as the modules
want them. Whole-model memory is needed here, and only here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.engine import gguf
from paceline.engine.blocks import DTYPES
from paceline.engine.family import CERTIFIED
from paceline.engine.source import SAFETENSORS_NAMES, Part, RawTensor, Source
from paceline.wire.errors import UnsupportedModel
from paceline.wire.messages import Dtype

_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "chat_template")
_GENERATION_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def open_source(path: Path, dtype: Dtype | None = None) -> Source:
    """A folder with config.json, or a GGUF file. `dtype` None keeps a folder's own, and makes float32 of GGUF.

    Raises UnsupportedModel for what cannot be read or is not certified.
    """
    if path.is_dir():
        return _folder(path, dtype)
    if gguf.architecture(path) == "llama" and dtype in (None, "f32"):
        return gguf.llama_source(path)
    return _gguf(path, dtype or "f32")


def _folder(path: Path, dtype: Dtype | None) -> Source:
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (path / "config.json").exists():
        raise UnsupportedModel(f"{path} has no config.json", cure="give a Hugging Face model folder or a .gguf file")
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    _check_family(config)
    chosen = dtype or _dtype_of(getattr(config, "dtype", None))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[chosen], local_files_only=True)
    return from_model(model, chosen, *_folder_tokenizer(path))


def _gguf(path: Path, dtype: Dtype) -> Source:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name, "local_files_only": True}
    _check_family(AutoConfig.from_pretrained(path.parent, **where))
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=DTYPES[dtype], **where)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    texts = {key: getattr(tokenizer, key, None) for key in _TOKEN_KEYS}
    return from_model(model, dtype, tokenizer.backend_tokenizer.to_str().encode(), texts)


def from_model(
    model: Any, dtype: Dtype, tokenizer: bytes | None = None, tokenizer_config: dict[str, Any] | None = None
) -> Source:
    """A loaded transformers model as a source. Raises UnsupportedModel."""
    _check_family(model.config)
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
    state = model.state_dict()
    head, embed = state.get("lm_head.weight"), state["model.embed_tokens.weight"]
    tied = head is None or head.data_ptr() == embed.data_ptr()
    defaults = model.generation_config.to_diff_dict() if model.generation_config is not None else {}
    return Source(
        config=json.loads(json.dumps(_complete(config, model.config), default=str)),
        dtype=dtype,
        tensors=_reader(state, tied, dtype),
        tied=tied,
        tokenizer=tokenizer,
        tokenizer_config={key: value for key, value in (tokenizer_config or {}).items() if value is not None},
        eos_ids=_eos_ids(defaults, model.config),
        generation={key: defaults[key] for key in _GENERATION_KEYS if defaults.get(key) is not None},
    )


def _complete(config: dict[str, Any], whole: Any) -> dict[str, Any]:
    """What readers of a manifest rely on, also where it is the family's default."""
    needed = ("model_type", "hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings")
    return {**config, **{key: getattr(whole, key) for key in needed if getattr(whole, key, None) is not None}}


def _reader(state: dict[str, Tensor], tied: bool, dtype: Dtype) -> Callable[[Part], Sequence[RawTensor]]:
    def read(part: Part) -> list[RawTensor]:
        if part == "embed":
            return [_raw("weight", state["model.embed_tokens.weight"], dtype)]
        if part == "head":
            names = {
                name: name.removeprefix("model.") for name in state if name.startswith(("model.norm.", "lm_head."))
            }
            return [_raw(to, state[name], dtype) for name, to in names.items() if not (tied and to == "lm_head.weight")]
        prefix = f"model.layers.{part}."
        return [_raw(name[len(prefix) :], state[name], dtype) for name in state if name.startswith(prefix)]

    return read


def _raw(name: str, tensor: Tensor, dtype: Dtype) -> RawTensor:
    plain = tensor.detach().to(DTYPES[dtype]).contiguous()
    return RawTensor(name, SAFETENSORS_NAMES[dtype], tuple(plain.shape), plain.view(-1).view(torch.uint8).numpy().data)


def _check_family(config: Any) -> None:
    if config.model_type not in CERTIFIED:
        raise UnsupportedModel(
            f"model family {config.model_type!r} is not certified", cure=f"certified: {', '.join(sorted(CERTIFIED))}"
        )


def _dtype_of(dtype: Any) -> Dtype:
    return next((name for name, known in DTYPES.items() if dtype in (known, str(known).removeprefix("torch."))), "f32")


def _eos_ids(generation: dict[str, Any], config: Any) -> tuple[int, ...]:
    found = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
    return tuple(found) if isinstance(found, list | tuple) else () if found is None else (int(found),)


def _folder_tokenizer(path: Path) -> tuple[bytes | None, dict[str, Any]]:
    file, config = path / "tokenizer.json", path / "tokenizer_config.json"
    if not file.exists():
        return None, {}
    texts = json.loads(config.read_text()) if config.exists() else {}
    if (path / "chat_template.jinja").exists():
        texts["chat_template"] = (path / "chat_template.jinja").read_text()
    kept = {key: texts[key] for key in _TOKEN_KEYS if key in texts}
    return file.read_bytes(), {key: _content(value) for key, value in kept.items()}


def _content(value: Any) -> Any:
    """Special tokens are spelled as text or as a record with flags."""
    return value["content"] if isinstance(value, dict) and "content" in value else value
