"""Which tokens of the mini tokenizer carry which attribute: `python benchmarks/presets.py`.

Measures it on pictures of the mini world and writes

- tokenopt_core/mini/tokenizer/presets.json: the positions that Token Copy-Paste offers by the attribute's name,
- docs/token_importance.md and .png: how they were found.

Three measurements: token importance (paper, Eq. 1) with the scenes' true attributes as classes; copy-paste of every
single token between pairs of pictures, read by the judge, which knows neither tokenizer nor CLIP; and token search
(Eq. 2), which says what of a picture the most visible replacement at each position changes. Run it again whenever the
mini tokenizer or its world changes: nothing else says where an attribute sits.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import tokenopt_core as to  # noqa: E402
from tokenopt_core.heatmap import draw_heatmap  # noqa: E402
from tokenopt_core.loading import MINI  # noqa: E402
from tokenopt_core.presets import FILE  # noqa: E402
from training.judge import Judge  # noqa: E402
from training.world import Album, Scene, sample_scenes  # noqa: E402

MOST_VALUES = 40  # of an attribute: what has more is no set of classes
MOST_POSITIONS = 3  # of a preset, as many as the paper's longest has
ALONE = 0.5  # share of pastes that must bring the attribute along and leave all else, or it gets no preset
BATCH = 64
CAPTION = "Shares of the row's greatest value, which stands at its end. Framed: the greatest."

Read = Callable[[Tensor], Sequence[Any]]  # pictures -> scenes


@dataclass(frozen=True)
class Effect:
    """What pasting some tokens did: shares of the pairs that differ in the attribute."""

    reached: float  # took over the reference's value
    kept: float  # and left every other attribute as it was


def attributes(scenes: Sequence[Any]) -> dict[str, Tensor]:
    """The attributes that divide these scenes into classes, with the class of each scene."""
    found = {}
    for field in fields(scenes[0]):
        values = sorted({getattr(scene, field.name) for scene in scenes})
        if 2 <= len(values) <= MOST_VALUES:
            found[field.name] = torch.tensor([values.index(getattr(scene, field.name)) for scene in scenes])
    return found


def in_parts(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    return torch.cat([function(part) for part in batch.split(BATCH)])


@torch.no_grad()
def paste_effects(
    tokenizer: to.Tokenizer, features: Tensor, scenes: Sequence[Any], names: Sequence[str], read: Read,
    positions: Sequence[int],
) -> dict[str, Effect]:  # fmt: skip
    """Pastes these tokens of each picture's successor into it: by attribute, what that did."""
    pasted = to.copy_paste(features, features.roll(-1, 0), positions)
    seen: list[Any] = []
    for part in pasted.split(BATCH):
        seen += read(tokenizer.decode(part).clamp(0, 1))
    triples = list(zip(scenes, [*scenes[1:], scenes[0]], seen, strict=True))
    return {name: effect(triples, name, names) for name in names}


def effect(triples: Sequence[tuple[Any, Any, Any]], name: str, names: Sequence[str]) -> Effect:
    """Of (target, reference, result) scenes: how often the result has the reference's attribute, and only that."""
    differ = [(t, r, s) for t, r, s in triples if getattr(t, name) != getattr(r, name)]
    reached = [(t, s) for t, r, s in differ if getattr(s, name) == getattr(r, name)]
    others = [other for other in names if other != name]
    kept = [all(getattr(t, other) == getattr(s, other) for other in others) for t, s in reached]
    return Effect(len(reached) / max(1, len(differ)), sum(kept) / max(1, len(differ)))


def choose(importance: Tensor, measure: Callable[[list[int]], Effect]) -> tuple[list[int], Effect] | None:
    """The fewest of the most important positions whose paste changes this attribute and no other; None if none do."""
    order = importance.argsort(descending=True, stable=True).tolist()
    for count in range(1, MOST_POSITIONS + 1):
        positions = sorted(order[:count])
        found = measure(positions)
        if found.kept >= ALONE:
            return positions, found
    return None


@torch.no_grad()
def search_changes(tokenizer: to.Tokenizer, features: Tensor, names: Sequence[str], read: Read) -> list[Counter[str]]:
    """By position, how often the most visible replacement of its token changes an attribute."""
    changes = [Counter[str]() for _ in range(tokenizer.num_tokens)]
    for z in features.split(1):
        (before,) = read(tokenizer.decode(z).clamp(0, 1))
        for position, counter in enumerate(changes):
            codes = tokenizer.indices(z)
            codes[:, position] = to.search_token(tokenizer, z, position)[0][0]
            (after,) = read(tokenizer.decode(tokenizer.lookup(codes), quantize=False).clamp(0, 1))
            counter.update(name for name in names if getattr(before, name) != getattr(after, name))
    return changes


@dataclass
class Measured:
    """All that the report says."""

    pictures: int
    pairs: int
    searched: int
    importance: dict[str, Tensor]  # attribute -> (N,)
    effects: dict[str, list[Effect]]  # attribute -> of each single position
    presets: dict[str, tuple[list[int], Effect]]
    changes: list[Counter[str]]


def measure(options: argparse.Namespace) -> Measured:
    tokenizer = to.load_tokenizer("mini")
    album = Album(tokenizer.image_size)
    judge = Judge(album)

    def read(images: Tensor) -> list[Scene]:
        return [verdict.scene for verdict in judge(images)]

    scenes = sample_scenes(options.pictures, random.Random(options.seed))
    with torch.no_grad():
        parts = [scenes[i : i + BATCH] for i in range(0, len(scenes), BATCH)]
        features = torch.cat([tokenizer.encode(album.pictures(part)) for part in parts])
        tokens = tokenizer.quantize(features)
    classes = attributes(scenes)
    names = list(classes)
    importance = {name: to.token_importance(tokens, labels) for name, labels in classes.items()}
    pairs = min(options.pairs, len(scenes))
    given = tokenizer, features[:pairs], scenes[:pairs], names, read
    single = [paste_effects(*given, [position]) for position in range(tokenizer.num_tokens)]
    presets = {}
    for name in names:

        def paste(positions: list[int], name: str = name) -> Effect:
            return paste_effects(*given, positions)[name]

        found = choose(importance[name], paste)
        if found:
            presets[name] = found
    changes = search_changes(tokenizer, features[: options.searched], names, read)
    effects = {name: [one[name] for one in single] for name in names}
    return Measured(len(scenes), pairs, options.searched, importance, effects, presets, changes)


def to_json(measured: Measured) -> dict[str, Any]:
    """The content of presets.json."""
    entries = {
        name: {"positions": positions, "reached": round(found.reached, 3), "rest_kept": round(found.kept, 3)}
        for name, (positions, found) in measured.presets.items()
    }
    return {"made_by": "python benchmarks/presets.py", "attributes": entries}


def report(measured: Measured) -> str:
    """The page, in Markdown."""
    rows = [row(name, measured) for name in measured.importance]
    searched = [
        f"| {position} | {', '.join(f'{name} {count}' for name, count in counter.most_common()) or '-'} |"
        for position, counter in enumerate(measured.changes)
    ]
    return PAGE.format(
        pictures=measured.pictures, pairs=measured.pairs, searched=measured.searched, alone=ALONE,
        most=MOST_POSITIONS, rows="\n".join(rows), changes="\n".join(searched),
    )  # fmt: skip


def row(name: str, measured: Measured) -> str:
    effects = measured.effects[name]
    important = int(measured.importance[name].argmax())
    strongest = max(range(len(effects)), key=lambda position: effects[position].reached)
    preset = measured.presets.get(name)
    shown = "none" if preset is None else f"{', '.join(map(str, preset[0]))}: {preset[1].reached:.2f}"
    return (
        f"| {name} | {important} | {effects[important].reached:.2f} | {strongest} | {effects[strongest].reached:.2f} "
        f"| {shown} | {'' if preset is None else f'{preset[1].kept:.2f}'} |"
    )


PAGE = """# Which token carries what: mini, measured

Written by `python benchmarks/presets.py`, which also writes the names that Token Copy-Paste offers for mini
(`tokenopt_core/mini/tokenizer/presets.json`).

![Importance and effect of every position](token_importance.png)

**Importance** (paper, Eq. 1) is the variance of the mean token between the classes of an attribute, over {pictures}
pictures of the mini world, with the scenes' true attributes as classes. **Copy-paste** is what the importance is to
predict: of {pairs} pictures each got one token of another, and a judge that knows neither tokenizer nor CLIP (the
nearest of all clean renders) read the result. It is the share of the pairs that differ in the attribute where the
result had the reference's value.

The preset is the fewest of the most important positions, at most {most}, whose paste brings the attribute along and
leaves all others as they were in at least {alone:.0%} of the pairs; an attribute that no such paste moves alone has
none.

| attribute | most important | its paste | strongest paste | its paste | preset: its paste | leaving all else |
| --- | ---: | ---: | ---: | ---: | --- | ---: |
{rows}

## The most visible replacement

Token search (Eq. 2) with the L1 change, over all codes: which attributes the judge reads differently after the most
visible replacement at each position, in {searched} pictures.

| position | attributes that changed, in how many pictures |
| ---: | --- |
{changes}
"""


def picture(measured: Measured, target: Path) -> None:
    """Importance and copy-paste of each attribute, one row below the other."""
    names, values = [], []
    for name, importance in measured.importance.items():
        names += [f"{name}: importance", "copy-paste"]
        values += [importance.double(), torch.tensor([e.reached for e in measured.effects[name]], dtype=torch.float64)]
    marked = [[int(row.argmax())] for row in values]
    draw_heatmap(names, torch.stack(values), marked, CAPTION).save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, help="for the importance")
    parser.add_argument("--pairs", type=int, default=300, help="for copy-paste, of each position")
    parser.add_argument("--searched", type=int, default=3, help="pictures whose every position is searched")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--presets", type=Path, default=MINI / "tokenizer" / FILE)
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "token_importance.md")
    options = parser.parse_args()
    options.presets.unlink(missing_ok=True)  # the old ones may not even fit the tokenizer
    measured = measure(options)
    options.presets.write_text(json.dumps(to_json(measured), indent=2) + "\n", encoding="utf-8")
    options.report.write_text(report(measured), encoding="utf-8")
    picture(measured, options.report.with_suffix(".png"))
    print(report(measured))


if __name__ == "__main__":
    main()
