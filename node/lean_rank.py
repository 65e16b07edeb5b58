"""A rank's process of a tensor-parallel span (engine.tensor_worker), without what a span never runs.

What `paceline node` starts where it leaves the same out of itself (node.placeholders). Should something of it be needed
after all, the first rank, which runs the same code, shows it and starts over with everything.
"""

from __future__ import annotations


def main() -> None:
    """The process."""
    from paceline.engine import lean_imports
    from paceline.node import placeholders

    placeholders.install(lean_imports.ROWS, lean_imports.HIDDEN)
    from paceline.engine import tensor_worker

    tensor_worker.main()


if __name__ == "__main__":
    main()
