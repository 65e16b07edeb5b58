"""Layers that memory shall not hold: run from the pages of the store's files, which the kernel reads when a step comes
to them and drops when it wants the room.

Numbers are those of the file, made wider as they are used, one matrix at a time; of experts only those that a step's
rows chose are read at all. Slower than packed weights even where the files lie in the kernel's cache, and as slow as
the disk where they do not: what the node measures and offers. Knows modules and tensors; no sessions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def resident(sizes: Sequence[int], last: int, budget: int) -> tuple[int, bool]:
    """How many of the first layers, of `sizes` bytes in memory, `budget` holds beside the LM head's `last` bytes; and
    whether it holds that, which every token needs whole and which is chosen first."""
    tail = last <= budget
    left = budget - last if tail else budget
    for held, size in enumerate(sizes):
        left -= size
        if left < 0:
            return held, tail
    return len(sizes), tail


class MappedLinear(nn.Module):
    """`nn.Linear` over a weight of the file's own type. ``[…, in] → […, out]``."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = weight, bias  # not parameters: nothing may convert or copy them

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self._weight.to(x.dtype), None if self._bias is None else self._bias.to(x.dtype))


class MappedExperts:
    """Stands for the weights of all experts, ``[experts, …]``, where one at a time is asked for."""

    def __init__(self, whole: Tensor, dtype: torch.dtype) -> None:
        self._whole, self._dtype = whole, dtype

    def __getitem__(self, expert: Any) -> Tensor:
        return self._whole[expert].to(self._dtype)


def stays_mapped(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether a parameter is one of the large ones that this module knows how to use from the file."""
    path, _, leaf = name.rpartition(".")
    holder = module.get_submodule(path)
    return (type(holder) is nn.Linear and leaf == "weight") or (path.endswith("experts") and tensor.ndim == 3)


def leave_mapped(module: nn.Module, dtype: torch.dtype) -> None:
    """Have a filled `module` use its large weights as they lie."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, MappedLinear(child.weight.data, None if child.bias is None else child.bias.data))
        else:
            leave_mapped(child, dtype)
    large = [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3]
    for name in large:
        whole = module._parameters.pop(name)
        assert whole is not None
        setattr(module, name, MappedExperts(whole.data, dtype))
    if large:
        one_by_one: Any = module
        one_by_one.config = copy.copy(one_by_one.config)
        one_by_one.config._experts_implementation = "eager"
