"""Bar charts as SVG text: medians with their spread. Knows labels and numbers; needs no library, follows dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, ROW, BAR, TOP, BOTTOM = 760, 250, 26, 16, 44, 30
RIGHT = 90

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1b1f24 }
.title { font-weight: 600; font-size: 15px } .note { fill: #57606a; font-size: 12px }
.bar { fill: #2f6fb3 } .before { fill: none; stroke: #9a6700; stroke-width: 2 }
.spread { stroke: #1b1f24; stroke-width: 1.5 } .axis { stroke: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9198a1 } .bar { fill: #4493f8 }
  .spread { stroke: #e6edf3 } .axis { stroke: #30363d }
}
"""


@dataclass(frozen=True)
class Bar:
    """One row: a median between its least and greatest value. `before`: the median of an older result."""

    label: str
    median: float
    least: float
    most: float
    before: float | None = None


def chart(title: str, unit: str, bars: Sequence[Bar]) -> str:
    """A horizontal bar chart. The thin line is the spread, the hollow mark the older result."""
    most = max((max(bar.most, bar.before or 0.0) for bar in bars), default=1.0) or 1.0
    scale = (WIDTH - LABELS - RIGHT) / most
    height = TOP + ROW * len(bars) + BOTTOM
    box = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="8" y="22">{escape(title)}</text>',
        f'<line class="axis" x1="{LABELS}" y1="{TOP - 6}" x2="{LABELS}" y2="{height - BOTTOM + 2}"/>',
    ]
    for number, bar in enumerate(bars):
        parts += _row(bar, TOP + ROW * number, scale)
    note = f"{unit}; bar: median, line: least to greatest" + ("; mark: before" if any(b.before for b in bars) else "")
    parts.append(f'<text class="note" x="8" y="{height - 9}">{escape(note)}</text>')
    return "\n".join((*parts, "</svg>", ""))


def _row(bar: Bar, top: float, scale: float) -> list[str]:
    middle = top + BAR / 2
    start, end = LABELS + bar.least * scale, LABELS + bar.most * scale
    parts = [
        f'<text x="{LABELS - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="bar" x="{LABELS}" y="{top:.1f}" width="{bar.median * scale:.1f}" height="{BAR}"/>',
        f'<line class="spread" x1="{start:.1f}" x2="{end:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
        f'<text x="{end + 8:.1f}" y="{middle + 4:.1f}">{bar.median:.3g}</text>',
    ]
    if bar.before is not None:
        at = LABELS + bar.before * scale
        parts.append(f'<line class="before" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 3:.1f}" y2="{top + BAR + 3:.1f}"/>')
    return parts
