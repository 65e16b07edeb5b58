"""A rank's process of a tensor-parallel span (engine.tensor_rank), without what a span never runs.

What `paceline node` starts where it leaves the same out of itself (node.placeholders). Should something of it be needed
after all, the first rank, which runs the same code, shows it and starts over with everything.
"""

from __future__ import annotations

from paceline.engine import lean_imports, tensor_rank
from paceline.node import placeholders


def main() -> None:
    """The process."""
    placeholders.install(lean_imports.ROWS, lean_imports.HIDDEN)
    tensor_rank.main()


if __name__ == "__main__":
    main()
