"""Linear layers with frozen weights on a CPU: PyTorch's and those of the product: `python benchmarks/linear.py`.

Times the product and its gradient with respect to the input, in turns, at the shapes of L-32's decoder, of ViT-B-32 and
of mini, and prints both and their ratio. The product takes oneDNN's way only for large layers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenopt_core import linear

SHAPES = {  # batch, tokens, channels in and out
    "L-32, MLP in": (1, 289, 1024, 4096),
    "L-32, MLP out": (1, 289, 4096, 1024),
    "L-32, queries, keys, values": (1, 289, 1024, 3072),
    "ViT-B-32, 8 crops, MLP in": (8, 50, 768, 3072),
    "mini, MLP in": (1, 33, 256, 1024),
}
ROUNDS = 7


def seconds(usual: bool, x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Of the product and its gradient."""
    function = F.linear if usual else linear.linear
    start = time.perf_counter()
    out = function(x, weight, bias)
    torch.autograd.grad(out, x, out)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"oneDNN: {'yes' if linear.available() else 'no'}; {torch.get_num_threads()} threads")
    for name, (batch, tokens, wide, out) in SHAPES.items():
        x = torch.randn(batch, tokens, wide, requires_grad=True)
        weight, bias = torch.randn(out, wide) / wide**0.5, torch.randn(out)
        taken = [[seconds(usual, x, weight, bias) for usual in (True, False)] for _ in range(ROUNDS)]
        usual, ours = (1000 * min(column) for column in zip(*taken, strict=True))
        print(f"{name}: {usual:.2f} ms, {ours:.2f} ms, {ours / usual:.2f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
