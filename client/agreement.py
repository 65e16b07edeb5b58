"""Two answers to one request, by two revisions: how far they agree, and how quick each was.

Knows results; keeps no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from paceline.client.results import Result


@dataclass(frozen=True, slots=True)
class Run:
    """One of the two. `tokens`: how many; times in seconds."""

    revision: str
    tokens: int
    ttft_s: float
    tokens_per_s: float

    @classmethod
    def of(cls, result: Result) -> Run:
        """Of a finished generation."""
        return cls(result.revision, len(result.tokens), result.ttft_s, result.tokens_per_s)


@dataclass(frozen=True, slots=True)
class Agreement:
    """`equal`: tokens before the first difference. `a` is the user's own answer, or the first of a comparison."""

    a: Run
    b: Run
    equal: int
    same: bool

    @classmethod
    def of(cls, a: Result, b: Result) -> Agreement:
        """Of two answers to the same prompt, in tokens of the same tokenizer."""
        return cls(Run.of(a), Run.of(b), common(a.tokens, b.tokens), a.tokens == b.tokens)

    @property
    def share(self) -> float:
        """Of the longer answer, the part before the first difference."""
        longest = max(self.a.tokens, self.b.tokens)
        return self.equal / longest if longest else 1.0

    def facts(self) -> dict[str, object]:
        """For a log line, and for JSON."""
        return {"equal": self.equal, "same": self.same, "a": _told(self.a), "b": _told(self.b)}


def _told(run: Run) -> dict[str, object]:
    return {
        "revision": run.revision,
        "tokens": run.tokens,
        "ttft_s": round(run.ttft_s, 4),
        "tokens_per_s": round(run.tokens_per_s, 2),
    }


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How long the common beginning is."""
    at = 0
    while at < min(len(a), len(b)) and a[at] == b[at]:
        at += 1
    return at


@dataclass(frozen=True, slots=True)
class Summary:
    """Of many agreements. Medians; `same`: answers without any difference."""

    answers: int
    same: int
    share: float
    ttft_s: tuple[float, float]
    tokens_per_s: tuple[float, float]

    @classmethod
    def of(cls, found: Sequence[Agreement]) -> Summary:
        """Of at least one."""
        return cls(
            answers=len(found),
            same=sum(it.same for it in found),
            share=median(it.share for it in found),
            ttft_s=(median(it.a.ttft_s for it in found), median(it.b.ttft_s for it in found)),
            tokens_per_s=(median(it.a.tokens_per_s for it in found), median(it.b.tokens_per_s for it in found)),
        )
