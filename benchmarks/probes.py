"""What linear probes read off single tokens and off fewer and fewer of them: `python benchmarks/probes.py`.

The paper's Appendix B.1, by default on renders of the mini world with each attribute of its scenes as the classes; with
`--folder` on any folder whose folders are the classes. Writes to `--out`:

- single.csv, single.png: accuracy of a table from code to class, one token position at a time;
- masking.csv, masking.png: accuracy of a linear head while the least important position is masked, round after round,
  on the codes and on the transformer features of the encoder's last layer.

Prints how well the single positions' accuracies agree with the token importance (rank correlation).
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import tokenopt_core as to  # noqa: E402
from benchmarks.presets import BATCH, attributes  # noqa: E402
from benchmarks.probing import (  # noqa: E402
    Labelled,
    ProbeConfig,
    Round,
    iterative_masking,
    table_accuracy,
    transformer_features,
)
from tokenopt_core.canvas import fit  # noqa: E402
from tokenopt_core.heatmap import draw_heatmap  # noqa: E402
from tokenopt_core.pictures import find_pictures, read_picture  # noqa: E402
from tokenopt_core.plot import plot_history  # noqa: E402

CODES, TRANSFORMER = "codes", "transformer features"
TESTED = 5  # one picture in so many is for the test

Pictures = Iterator[Tensor]  # (B, 3, S, S) each


def from_world(count: int, size: int, seed: int) -> tuple[Pictures, dict[str, Tensor]]:
    """Renders, and the class of each in every attribute."""
    from training.world import World, sample_scenes

    scenes, world = sample_scenes(count, random.Random(seed)), World(size)
    return (world.render(scenes[i : i + BATCH])[0] for i in range(0, count, BATCH)), attributes(scenes)


def from_folder(folder: Path, size: int) -> tuple[Pictures, dict[str, Tensor]]:
    """The pictures in a folder's folders, and the number of the folder of each; what cannot be read is named."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    pictures, labels = [], []
    for number, path in enumerate(classes):
        for file in find_pictures(path).files:
            try:
                pictures.append((fit(read_picture(file)[None], None, size)[0] * 255).round().byte())
                labels.append(number)
            except ValueError as error:
                print(f"skipped {file.name}: {error}")
    if len(set(labels)) < 2:
        raise SystemExit(f"{folder} needs at least two folders with pictures, one a class")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = torch.cat(pictures)[order]
    return (part.float() / 255 for part in shuffled.split(BATCH)), {"folder": torch.tensor(labels)[order]}


@torch.no_grad()
def look(tokenizer: to.Tokenizer, pictures: Pictures, kinds: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The quantized tokens (M, N, D), and what is to be probed."""
    tokens, found = [], {kind: list[Tensor]() for kind in kinds}
    for images in pictures:
        features = tokenizer.encode(images)
        tokens.append(tokenizer.quantize(features))
        if CODES in found:
            found[CODES].append(tokenizer.indices(features))
        if TRANSFORMER in found:
            found[TRANSFORMER].append(transformer_features(tokenizer, images))
    return torch.cat(tokens), {kind: torch.cat(parts) for kind, parts in found.items()}


def divide(tokens: Tensor, labels: Tensor) -> tuple[Labelled, Labelled]:
    """What is learned from, and what is tested on."""
    tested = torch.arange(len(labels)) % TESTED == 0
    return Labelled(tokens[~tested], labels[~tested]), Labelled(tokens[tested], labels[tested])


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(head)
        table.writerows(rows)


def single(out: Path, tokens: Tensor, codes: Tensor, classes: dict[str, Tensor]) -> None:
    """One token position at a time."""
    rows, values = [], []
    for name, labels in classes.items():
        train, test = divide(codes, labels)
        accuracy, chance = table_accuracy(train, test), float(test.labels.bincount().max()) / len(test.labels)
        importance = to.token_importance(tokens, labels)
        rows += [
            [name, position, f"{a:.4f}", f"{chance:.4f}", f"{i:.6g}"]
            for position, (a, i) in enumerate(zip(accuracy.tolist(), importance.tolist(), strict=True))
        ]
        values.append((accuracy - chance).clamp(min=0))
        print(
            f"{name}: best position {int(accuracy.argmax())} with {float(accuracy.max()):.3f} (always the same class: "
            f"{chance:.3f}); rank correlation with the importance {rank_correlation(accuracy, importance):.2f}"
        )
    write_csv(out / "single.csv", ("attribute", "position", "accuracy", "chance", "importance"), rows)
    marks = [[int(row.argmax())] for row in values]
    caption = "Accuracy of a single position above always the same class, as shares of the row's greatest."
    draw_heatmap(list(classes), torch.stack(values), marks, caption).save(out / "single.png")


def masking(out: Path, probed: dict[str, Tensor], classes: dict[str, Tensor], config: ProbeConfig) -> None:
    """Fewer and fewer positions."""
    rows, curves = [], {}
    for name, labels in classes.items():
        for kind, tokens in probed.items():
            rounds = iterative_masking(*divide(tokens, labels), config)
            order = [r.removed for r in rounds]
            print(f"{name}, {kind}: {rounds[0].accuracy:.3f} with all; masked in this order: {order}", flush=True)
            rows += [[name, kind, *cells(r)] for r in rounds]
            curve = [r.accuracy for r in rounds] + [rounds[-1].accuracy_without]
            curves[f"{name}, {kind}: accuracy over masked positions"] = torch.tensor(curve)[:, None]
    head = ("attribute", "features", "remaining", "accuracy", "masked next", "accuracy without it")
    write_csv(out / "masking.csv", head, rows)
    plot_history(curves).save(out / "masking.png")


def cells(r: Round) -> list[object]:
    return [len(r.remaining), f"{r.accuracy:.4f}", r.removed, f"{r.accuracy_without:.4f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ProbeConfig()
    parser.add_argument("--model", default="mini", help="a tokenizer with codes: a name, a folder or a weight file")
    parser.add_argument("--folder", type=Path, help="of class folders; otherwise the mini world is rendered")
    parser.add_argument("--pictures", type=int, default=4000, help="how many to render")
    parser.add_argument("--attributes", nargs="*", default=(), help="which of the mini world's; all if left out")
    parser.add_argument("--features", choices=(CODES, "transformer", "both"), default="both", help="for the masking")
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--dropout", type=float, default=default.dropout)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "probes")
    options = parser.parse_args(arguments)
    tokenizer = to.load_tokenizer(options.model)
    size = tokenizer.image_size
    given = from_folder(options.folder, size) if options.folder else from_world(options.pictures, size, options.seed)
    pictures, classes = given
    if not {*options.attributes} <= {*classes}:
        parser.error(f"--attributes must be some of {', '.join(classes)}")
    classes = {name: labels for name, labels in classes.items() if name in (options.attributes or classes)}
    tokens, probed = look(tokenizer, pictures, (CODES, TRANSFORMER) if options.features != CODES else (CODES,))
    options.out.mkdir(parents=True, exist_ok=True)
    single(options.out, tokens, probed[CODES], classes)
    if options.features == "transformer":
        del probed[CODES]
    masking(options.out, probed, classes, ProbeConfig(options.epochs, dropout=options.dropout, seed=options.seed))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
