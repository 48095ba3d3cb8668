"""What single operations gain in the form that the product computes them in: `python benchmarks/operations.py`.

Frozen layers on a CPU, at the shapes of L-32, ViT-B-32 and small models: PyTorch's way and the product's, with the
gradient with respect to the input, in turns; printed are both and their ratio. `--model titok_l32` measures one
iteration as a whole beside the published loop's, with `--without NAME` beside the product's without an operation, or
with `--precision NAME` beside the product's in half precision.
What counts are the seconds that the process computed, so that other programs disturb little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenopt_core as to
from benchmarks import cases, plain
from tokenopt_core import allocator, linear, winograd
from tokenopt_core.convolutions import Patches, convolve_doubled
from tokenopt_core.optimize import Precision
from tokenopt_core.titok import maskgit

LINEAR = {  # batch, tokens, channels in and out
    "L-32, MLP in": (1, 289, 1024, 4096),
    "L-32, MLP out": (1, 289, 4096, 1024),
    "L-32, queries, keys, values": (1, 289, 1024, 3072),
    "ViT-B-32, 8 crops, MLP in": (8, 50, 768, 3072),
    "ViT-B-32, 8 crops, MLP out": (8, 50, 3072, 768),
    "mini, MLP in": (1, 33, 256, 1024),
}
DOUBLED = {"L-32, to 32 px": (512, 16), "to 64 px": (256, 32), "to 128 px": (256, 64), "to 256 px": (128, 128)}
NORMED = {  # channels in and out, side
    "L-32, 256 px": (128, 128, 256),
    "128 px": (128, 128, 128),
    "128 px, half as wide after": (256, 128, 128),
    "64 px": (256, 256, 64),
    "32 px": (256, 256, 32),
    "the picture, 256 px": (128, 3, 256),
}
PATCHES = {  # pictures, side, patch, channels out
    "ViT-B-32, 8 crops": (8, 224, 32, 768),
    "ViT-B-16, 2 crops": (2, 224, 16, 768),
    "64 px, 8 crops": (8, 64, 8, 128),
}
Function = Callable[[Tensor], Tensor]


@dataclass
class Operation:
    """The same function twice, and what goes in."""

    name: str
    usual: Function
    ours: Function
    x: Tensor


def operations() -> Iterator[Operation]:
    for name, (batch, tokens, wide, out) in LINEAR.items():
        weight, bias = torch.randn(out, wide) / wide**0.5, torch.randn(out)
        # oneDNN's product also where the product of the usual BLAS would be taken
        yield Operation(
            f"linear in oneDNN: {name}",
            lambda x, weight=weight, bias=bias: F.linear(x, weight, bias),  # type: ignore[misc]
            lambda x, weight=weight, bias=bias: linear._Frozen.apply(x, weight, bias),  # type: ignore[misc]
            torch.randn(batch, tokens, wide),
        )
    for name, (channels, side) in DOUBLED.items():
        layer = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
        yield Operation(
            f"doubling convolution: {name}",
            lambda x, layer=layer: usual_doubling(x, layer),  # type: ignore[misc]
            lambda x, layer=layer: convolve_doubled(x, layer),  # type: ignore[misc]
            torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last),
        )
    for name, (wide, out, side) in NORMED.items():
        norm = nn.GroupNorm(32, wide).requires_grad_(False)
        layer = nn.Conv2d(wide, out, 3, padding=1).requires_grad_(False)
        yield Operation(
            f"normalization, SiLU, convolution: {name}",
            lambda x, norm=norm, layer=layer: layer(F.silu(norm(x))),  # type: ignore[misc]
            lambda x, norm=norm, layer=layer: winograd.convolve_normed(x, norm, layer),  # type: ignore[misc]
            torch.randn(1, wide, side, side).contiguous(memory_format=torch.channels_last),
        )
    for name, (pictures, side, patch_side, out) in PATCHES.items():
        layer = nn.Conv2d(3, out, patch_side, patch_side).requires_grad_(False)
        yield Operation(f"patches: {name}", layer, Patches(layer), torch.randn(pictures, 3, side, side))


def usual_doubling(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def other_product(here: bool) -> AbstractContextManager[object]:
    """oneDNN's where the product takes the usual one, and the other way round."""
    return patch.object(linear, "pays", lambda: not here)


WITHOUT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "doubling": lambda: patch.object(maskgit, "convolve_doubled", usual_doubling),
    "patches": lambda: patch.object(Patches, "forward", nn.Conv2d.forward),
    "strips": lambda: patch.object(winograd, "_suits", lambda *layers: False),
    "kept": lambda: patch.object(allocator, "_library", lambda: None),
    "linear": lambda: other_product(linear.pays()),
}


def seconds(function: Function, x: Tensor) -> float:
    """Of the function and its gradient."""
    x = x.detach().requires_grad_(True)
    start = time.process_time()
    out = function(x)
    torch.autograd.grad(out, x, out)
    return time.process_time() - start


class _Done(Exception):
    """What was to be timed is over."""


def iteration(case: cases.Case) -> float:
    """Of a run's second iteration: the first takes the memory that a run keeps."""
    times: list[float] = []

    def done(_: object) -> None:
        times.append(time.process_time())
        if len(times) == 2:
            raise _Done

    loss = to.ClipLoss(case.clip, case.prompt, crops=case.crops)
    with suppress(_Done):
        if case.mode == "plain":
            plain.optimize(case.tokenizer, case.features, case.clip, case.prompt, case.config, case.crops, done)
        else:
            to.optimize(case.tokenizer, case.features, loss, case.config, callback=done)
    return times[1] - times[0]


def compare(model: str, crops: int, without: Sequence[str], precisions: Sequence[Precision], rounds: int) -> None:
    """Prints an iteration's seconds and their ratios; the round before those that count pays first-use costs."""
    case = cases.make(model, "cpu", 1, crops, to.OptimizeConfig(precision="float32"))
    case.tokenizer.model.encoder = nn.Identity()  # type: ignore[assignment] # no iteration needs it: half the memory
    others = {f"without {name}": (case, WITHOUT[name]) for name in without}
    for precision in precisions:
        others[f"in {precision}"] = replace(case, config=replace(case.config, precision=precision)), nullcontext
    if not others:
        others["published loop"] = cases.as_plain(case), nullcontext
    taken = []
    for _ in range(rounds + 1):
        row = [iteration(case)]
        for other, switched in others.values():
            with switched():
                row.append(iteration(other))
        taken.append(row)
    for i, name in enumerate(others, 1):
        ours, theirs = (median(row[column] for row in taken[1:]) for column in (0, i))
        ratio = median(row[0] / row[i] for row in taken[1:])
        print(f"{model}, {crops} crops, one iteration: {ours:.2f} s, {name} {theirs:.2f} s, {ratio:.2f} x")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument("--rounds", type=int, help="of which the median counts; default: 7, of whole iterations 2")
    parser.add_argument(
        "--model", choices=cases.MODELS, metavar="NAME", help="measure an iteration of this one instead"
    )
    parser.add_argument("--crops", type=int, default=8, help="of an iteration; default: 8")
    parser.add_argument("--without", choices=WITHOUT, nargs="+", default=[], help="beside the product without each")
    parser.add_argument(
        "--precision", choices=("bfloat16", "float16"), nargs="+", default=[], help="beside the product in each"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.model:
        compare(options.model, options.crops, options.without, options.precision, options.rounds or 2)
        return 0
    taken = f"oneDNN: {'yes' if linear.available() else 'no'}; taken here: {'yes' if linear.pays() else 'no'}"
    print(
        f"{cases.machine(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}; {taken}"
    )
    for operation in operations():
        ways = (operation.usual, operation.ours)
        rounds = [[seconds(way, operation.x) for way in ways] for _ in range((options.rounds or 7) + 1)][1:]
        usual, ours = (1000 * median(column) for column in zip(*rounds, strict=True))
        print(f"{operation.name}: {usual:.2f} ms, {ours:.2f} ms, {ours / usual:.2f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
