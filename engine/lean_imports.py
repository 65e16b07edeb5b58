"""What a node leaves out of torch and transformers (see node.placeholders), with the reason for each row. Data only.

Measured by `python -m bench.memory`. `tests/engine/test_lean_imports.py` compares every certified family, bit by bit,
with what it computes under full imports.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any


def _as_it_is(thing: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that changes nothing."""
    return _as_it_is if thing is None else thing


def _no(*_: Any, **__: Any) -> bool:
    return False


class _Alone:
    """For transformers' DistributedMixin: this model is not spread by transformers."""

    def init_parallel_plans(self) -> None:
        """There are none."""


class GenerationMixin:
    """For transformers' class of this name, which it looks for among a model's bases."""


_TRUTH: Mapping[str, Callable[[Any], bool]] = {"expect_true": bool, "guard_or_false": bool, "guard_or_true": bool}
_COMPILER = dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _as_it_is) | {"is_compiling": _no}

ROWS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    # --- torch
    ("torch._dynamo", "a compiler; the modules only ask not to be compiled, by decorator", _COMPILER),
    ("torch._inductor", "a compiler", {}),
    ("torch._meta_registrations", "shapes on the meta device for compilers; torch's own meta kernels remain", {}),
    ("torch._decomp", "for compilers", {}),
    ("torch._refs", "for compilers", {}),
    ("torch._prims", "for compilers", {}),
    ("torch.ao", "quantisation of whole models, by torch", {}),
    ("torch.onnx", "export", {}),
    ("torch.export", "export", {}),
    ("torch.hub", "downloads", {}),
    ("torch.optim", "training", {}),
    ("torch.distributions", "training, and draws that engine.draw makes itself", {}),
    ("torch.utils.data", "training", {}),
    ("torch.nn.parallel", "training", {}),
    ("torch.masked", "another kind of tensor", {}),
    ("torch.profiler", "for developers", {}),
    ("torch.fx.passes", "for compilers", {}),
    ("torchgen", "builds torch", {}),
    ("unittest.mock", "for tests; torch's debuggers import it, and it brings asyncio", {}),
    ("torch.fx.experimental.symbolic_shapes", "sizes are numbers here; brings sympy", _TRUTH),
    ("torch.distributed.tensor", "tensors spread over devices by torch; brings sympy", {}),
    ("torch.distributed.fsdp", "training", {}),
    ("sympy", "for compilers", {}),
    # --- transformers
    ("transformers.utils.auto_docstring", "writes documentation while importing", {"auto_docstring": _as_it_is}),
    ("transformers.utils.chat_template_utils", "templates are the client's; brings jinja2", {}),
    ("transformers.utils.loading_report", "blocks are read by engine.blocks", {}),
    (
        "transformers.processing_utils",
        "images and sound; only the spelling of a type is used",
        {"Unpack": typing.Unpack},
    ),
    ("transformers.models.auto.modeling_auto", "a table of all models; engine.family finds its own", {}),
    ("transformers.tokenization_utils_base", "text is the client's", {}),
    ("transformers.utils.chat_parsing", "text is the client's", {}),
    ("transformers.generation.utils", "generate(); the ring does that", {"GenerationMixin": GenerationMixin}),
    ("transformers.generation.continuous_batching", "a server's scheduler", {}),
    ("transformers.quantizers", "weights are blocks of the store", {}),
    ("transformers.conversion_mapping", "checkpoints are read by engine.blocks", {}),
    ("transformers.core_model_loading", "checkpoints are read by engine.blocks", {}),
    ("transformers.safetensors_conversion", "talks to the hub", {}),
    ("transformers.loss.loss_utils", "training", {"LOSS_MAPPING": {"ForCausalLM": None}}),
    ("transformers.distributed", "torch's way of spreading a model", {}),
    ("transformers.distributed.mixin", "same", {"DistributedMixin": _Alone}),
    ("transformers.distributed.utils", "same", {"is_dtensor": _no}),
    ("transformers.integrations.accelerate", "offloading", {}),
    ("transformers.integrations.deepspeed", "training", {"is_deepspeed_zero3_enabled": _no}),
    ("transformers.integrations.peft", "adapters", {}),
    ("transformers.integrations.flash_attention", "attention is engine.attention", {}),
    ("transformers.integrations.flex_attention", "attention is engine.attention", {}),
    ("transformers.integrations.finegrained_fp8", "GPU kernels", {"ALL_FP8_EXPERTS_FUNCTIONS": {}}),
    ("transformers.integrations.deepgemm", "GPU kernels", {}),
    ("transformers.integrations.sonicmoe", "GPU kernels", {}),
    # --- huggingface_hub
    ("httpx2", "nothing is fetched from a hub", {}),
    ("httpcore2", "same", {}),
    ("huggingface_hub.repocard", "nothing is written for a hub; brings yaml", {}),
    ("huggingface_hub.repocard_data", "same", {}),
    ("huggingface_hub.hf_api", "nothing is fetched from a hub", {}),
    ("huggingface_hub.file_download", "nothing is fetched from a hub", {}),
    ("huggingface_hub._snapshot_download", "nothing is fetched from a hub", {}),
    ("huggingface_hub._commit_api", "nothing is sent to a hub", {}),
)

HIDDEN = ("accelerate", "jinja2", "tokenizers")
"""Packages that transformers uses where it finds them. Not for a span: text is the client's."""
