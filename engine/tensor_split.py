"""Which part of every layer's tensors a rank of a tensor-parallel span holds, and where its layers join the others.

Attention is cut by heads (key-value heads with the query heads that belong to them), the MLP by its inner width:
products into the inside by output columns, products out of it by input rows (Shoeybi et al., "Megatron-LM", 2019). So
a layer joins twice: after attention's output product and after the MLP's last. Experts are cut each like an MLP, and
routers are whole on every rank. What transformers' `base_model_tp_plan` says of each family is followed, and compared
with this table by a test; where a plan would gather in between (fused projections), the parts are cut apart instead.

Cuts need not be even: three key-value heads on two ranks are two and one. Knows names and shapes; no processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from paceline.engine.lean import LeanLayer
from paceline.wire.errors import InvalidRequest, UnsupportedModel

Cut = tuple[int, int]
"""From, to."""

_INTO = ("gate_proj", "up_proj", "c_fc")
_OUT = ("down_proj", "c_proj")
_UNIT = 32
"""Inner widths are cut at multiples of this where they have enough of them: weights in 4 bits share scales so."""
_NORM_OVER_HEADS = ("olmo2", "olmo3")


def cuts(whole: int, ranks: int, unit: int = 1) -> list[Cut]:
    """`whole` in `ranks` parts at multiples of `unit`, as even as they come."""
    edges = [round(at * (whole // unit) / ranks) * unit for at in range(ranks)] + [whole]
    return list(pairwise(edges))


def check(config: Any, ranks: int) -> None:
    """Raises InvalidRequest or UnsupportedModel where a model of this configuration cannot be cut in `ranks`."""
    heads = config.num_key_value_heads
    if not 1 <= ranks <= heads:
        raise InvalidRequest(
            f"{heads} key-value heads cannot be divided among {ranks} devices",
            cure=f"--tensor-parallel {heads} at most; more devices serve a span each, as nodes of their own",
        )
    if config.model_type in _NORM_OVER_HEADS or getattr(config, "use_qk_norm", False):
        raise UnsupportedModel(
            f"{config.model_type} norms queries and keys over all heads, which no device would have",
            cure="leave out --tensor-parallel; several devices serve a span each, as nodes of their own",
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What one of `ranks` processes holds of a span. `join`: the sum over ranks of a tensor, which it may overwrite;
    `gather`: ``[rows, mine]`` of all ranks side by side, given everybody's width."""

    rank: int
    ranks: int
    join: Callable[[Tensor], Tensor]
    gather: Callable[[Tensor, list[int]], Tensor]

    def everybody(self, vocab: int) -> Callable[[Tensor], Tensor]:
        """Logits of this rank's words → those of all `vocab`."""
        widths = [end - start for start, end in self.vocabulary(vocab)]
        return lambda mine: self.gather(mine, widths)

    def vocabulary(self, vocab: int) -> list[Cut]:
        """Everybody's rows of the LM head."""
        return cuts(vocab, self.ranks)

    def inner(self, width: int) -> Cut:
        """This rank's part of an MLP's inner width."""
        unit = _UNIT if width % _UNIT == 0 and width // _UNIT >= self.ranks else 1
        return cuts(width, self.ranks, unit)[self.rank]

    def key_heads(self, config: Any) -> Cut:
        """This rank's key-value heads."""
        return cuts(config.num_key_value_heads, self.ranks)[self.rank]

    def query_heads(self, config: Any) -> Cut:
        """This rank's query heads: those of its key-value heads."""
        groups = config.num_attention_heads // config.num_key_value_heads
        start, end = self.key_heads(config)
        return start * groups, end * groups

    def cut(self, name: str, whole: Tensor, config: Any) -> Tensor:
        """The part of a layer's parameter `name` (as inside the layer); `whole` itself where every rank has it all."""
        path = name.removesuffix(".weight").removesuffix(".bias")
        leaf, bias = path.rpartition(".")[2], name.endswith("bias")
        if ".experts." in name:
            return self._expert(leaf, whole, config)
        if name.startswith("self_attn."):
            return self._attention(leaf, whole, bias, config)
        if leaf in _INTO:
            return _narrow(whole, 0, self.inner(len(whole)))
        if leaf == "gate_up_proj":
            return self._halves(whole, 0)
        if leaf in _OUT:
            return self._once(whole) if bias else _narrow(whole, 1, self.inner(whole.shape[1]))
        return whole

    def _attention(self, leaf: str, whole: Tensor, bias: bool, config: Any) -> Tensor:
        size = _head_size(config)
        queries, keys = self.query_heads(config), self.key_heads(config)
        if leaf == "q_proj":
            return _narrow(whole, 0, _times(queries, size))
        if leaf in ("k_proj", "v_proj"):
            return _narrow(whole, 0, _times(keys, size))
        if leaf == "qkv_proj":
            wide = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
            parts = whole.split_with_sizes([heads * size for heads in wide])
            mine = zip(parts, (queries, keys, keys), strict=True)
            return torch.cat([_narrow(part, 0, _times(heads, size)) for part, heads in mine])
        if leaf == "o_proj":
            return self._once(whole) if bias else _narrow(whole, 1, _times(queries, size))
        if leaf == "sinks":
            return _narrow(whole, 0, queries)
        return whole

    def _expert(self, leaf: str, whole: Tensor, config: Any) -> Tensor:
        """Tensors of all experts, ``[experts, out, in]``; GPT-OSS has ``[experts, in, out]`` and mixes gate with up."""
        mixed = config.model_type == "gpt_oss"
        if leaf == "gate_up_proj":
            return _narrow(whole, 2, self._mixed(whole.shape[2])) if mixed else self._halves(whole, 1)
        if leaf == "gate_up_proj_bias":
            return _narrow(whole, 1, self._mixed(whole.shape[1]))
        if leaf == "down_proj":
            side = 1 if mixed else 2
            return _narrow(whole, side, self.inner(whole.shape[side]))
        return self._once(whole) if leaf == "down_proj_bias" else whole

    def _halves(self, whole: Tensor, side: int) -> Tensor:
        """Gate, then up."""
        return torch.cat([_narrow(half, side, self.inner(half.shape[side])) for half in whole.chunk(2, side)], side)

    def _mixed(self, both: int) -> Cut:
        """Gate and up by turns."""
        return _times(self.inner(both // 2), 2)

    def _once(self, bias: Tensor) -> Tensor:
        """What is added to a joined sum, one rank adds."""
        return bias if self.rank == 0 else torch.zeros_like(bias)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _times(cut: Cut, size: int) -> Cut:
    return cut[0] * size, cut[1] * size


def _narrow(whole: Tensor, side: int, cut: Cut) -> Tensor:
    return whole.narrow(side, cut[0], cut[1] - cut[0])


def fit(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Make empty parameters of `module` as large as the parts that will fill them."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        with suppress(AttributeError):  # a name that it does not have: told when it is filled
            holder: Any = module.get_submodule(path)
            if holder._parameters[leaf].shape == tensor.shape:
                continue
            holder._parameters[leaf] = nn.Parameter(torch.empty_like(tensor, device="meta"), requires_grad=False)
            if isinstance(holder, nn.Linear) and leaf == "weight":
                holder.out_features, holder.in_features = tensor.shape


def localise(layer: nn.Module, part: Part) -> None:
    """Tell modules that read head counts from the configuration how many there are here (fused projections)."""
    for module in layer.modules():
        if isinstance(getattr(module, "qkv_proj", None), nn.Module):
            fused: Any = module
            local = copy.copy(fused.config)
            local.num_attention_heads = _length(part.query_heads(fused.config))
            local.num_key_value_heads = fused.num_key_value_heads = _length(part.key_heads(fused.config))
            fused.config = local


def _length(cut: Cut) -> int:
    return cut[1] - cut[0]


def connect(layer: nn.Module, part: Part) -> None:
    """Have a filled layer's partial products join those of the other ranks."""
    if isinstance(layer, LeanLayer):
        layer.join = part.join
        return
    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if name in ("o_proj", "experts", *_OUT):
                setattr(parent, name, Joined(child, part.join))


class Joined(nn.Module):
    """A module whose outputs are summed over ranks."""

    def __init__(self, inner: nn.Module, join: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self._join = inner, join

    def forward(self, *args: Any, **named: Any) -> Tensor:
        return self._join(self.inner(*args, **named))
