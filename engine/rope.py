"""Rotary angles by position, computed once by the family's own module and then looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paceline.engine.kv import Segment
from paceline.wire.errors import UnsupportedModel

_FIRST = 1024


class RotaryTable:
    """Cosines and sines ``[positions, rotary size]`` of one rotary module, grown by doubling."""

    def __init__(
        self, rotary: Callable[[Tensor, Tensor], object], dtype: torch.dtype, device: torch.device, context: int
    ) -> None:
        self._rotary, self._dtype, self._device, self._context = rotary, dtype, device, context
        self._cos = self._sin = torch.empty(0)

    def angles(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
        """``[1, rows, rotary size]`` twice, for the rows of a packed batch."""
        end = max(segment.start + segment.n for segment in segments)
        if end > len(self._cos):
            self._grow(end)
        if len(segments) == 1:
            at = slice(segments[0].start, end)
            return self._cos[at][None], self._sin[at][None]
        rows = torch.cat([torch.arange(s.start, s.start + s.n, device=self._device) for s in segments])
        return self._cos[rows][None], self._sin[rows][None]

    def _grow(self, end: int) -> None:
        size = min(max(end, 2 * len(self._cos), _FIRST), max(end, self._context))
        positions = torch.arange(size, device=self._device)[None]
        made = self._rotary(torch.empty(1, 1, 1, dtype=self._dtype, device=self._device), positions)
        if not (isinstance(made, tuple) and len(made) == 2 and all(part.shape[:2] == (1, size) for part in made)):
            raise UnsupportedModel("this family's position embedding is not a pair of cosines and sines per position")
        self._cos, self._sin = made[0][0], made[1][0]
