"""How near the machine's limits is a span on an NVIDIA GPU, and how far ahead of transformers?

``python -m bench.engine --shape llama-8b --random``: random weights, the device printed, limits measured and every bar
judged in one run: decode of one session against the time that reading the weights takes; 64 sessions against
transformers' `generate_batch` (continuous batching) over the same tensors; prefill against the rate of matrix products;
a span of 8 layers alone against its share. Before that, correctness at 4 layers, from poisoned pages. No network, no
store.
"""

from __future__ import annotations

import argparse
import sys

import torch

SHAPES = ("llama-8b",)


def main() -> int:
    """0 where every bar was met, 1 where not, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--random", action="store_true", help="random weights (there are no others for a shape)")
    parser.add_argument("--profile", action="store_true", help="also print where device time goes")
    parser.add_argument("--alone", action="store_true", help="leave transformers' generate_batch out (no bar for it)")
    parser.add_argument("--forms", action="store_true", help="instead: weights in 8 and 4 bits (bench.gpu_forms)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: this part needs one")
        return 2
    from bench import gpu_bars, gpu_forms

    if options.forms:
        return gpu_forms.run(options.shape)
    return gpu_bars.run(options)


if __name__ == "__main__":
    sys.exit(main())
