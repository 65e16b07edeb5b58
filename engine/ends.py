"""What a model does before its first layer and after its last: embedding, final norm, LM head, logit scales and caps.

Done lean here, and compared at load with what the family's own forward makes of the same input: a family that does
something else out there is refused, not run wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paceline.wire.errors import UnsupportedModel


class Head:
    """Token ids ``[rows]`` → hidden states ``[rows, hidden]``."""

    def __init__(self, embed: nn.Module, scale: float | None) -> None:
        self._embed, self._scale = embed, scale

    def __call__(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self._embed(ids)
        return hidden if self._scale is None else hidden * self._scale


class Tail:
    """Hidden states ``[rows, hidden]`` after the last layer → logits ``[rows, vocab]``."""

    def __init__(self, norm: nn.Module, lm_head: nn.Module, config: Any) -> None:
        self._norm, self._lm_head = norm, lm_head
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._times = getattr(config, "logit_scale", None)
        self._over = getattr(config, "logits_scaling", None)
        self.gather: Callable[[Tensor], Tensor] | None = None
        """Where ranks hold a part of the LM head each: everybody's logits side by side."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.logits(self._norm(hidden))

    def logits(self, normed: Tensor) -> Tensor:
        """LM head and what follows it, without the norm."""
        logits: Tensor = self._lm_head(normed)
        if self.gather is not None:
            logits = self.gather(logits)
        if self._times is not None:
            logits = logits * self._times
        if self._over is not None:
            logits = logits / self._over
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits


@torch.inference_mode()
def head(model: Any, embed: nn.Module) -> Head:
    """The head of `model`, whose embedding is filled. Raises UnsupportedModel where the family does more."""
    made = Head(embed, getattr(model.config, "embedding_multiplier", None))
    base, kept = model.model, (model.model.layers, model.model.norm)
    ids = torch.tensor([0, 1, model.config.vocab_size - 1], device=next(embed.parameters()).device)
    base.layers, base.norm = nn.ModuleList(), nn.Identity()
    try:
        theirs = base(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    finally:
        base.layers, base.norm = kept
    _compare(made(ids), theirs, model, "embedding")
    return made


@torch.inference_mode()
def tail(model: Any, norm: nn.Module, lm_head: nn.Module) -> Tail:
    """The tail of `model`. Raises UnsupportedModel where the family does more."""
    made = Tail(norm, lm_head, model.config)
    weight = next(norm.parameters())
    probe = torch.linspace(-1.0, 1.0, 2 * model.config.hidden_size, device=weight.device).view(2, -1)
    probe = probe.to(_activation_dtype(model))
    model.model, model.lm_head = _Given(probe[None]), lm_head
    theirs = model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=weight.device), use_cache=False).logits[0]
    _compare(made.logits(probe), theirs, model, "LM head")
    return made


class _Given(nn.Module):
    """Stands for a model's layers and yields a prepared hidden state."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        return MoeModelOutputWithPast(last_hidden_state=self._hidden)


def _activation_dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = model.config.dtype
    return dtype


def _compare(ours: Tensor, theirs: Tensor, model: Any, what: str) -> None:
    if ours.shape != theirs.shape or not torch.allclose(ours.float(), theirs.float(), rtol=1e-4, atol=1e-5):
        raise UnsupportedModel(f"{type(model).__name__}: its {what} does more than Paceline knows of")
