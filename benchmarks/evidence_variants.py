"""The paper's Tables 2 and 3 in small: tokenizers of several shapes that nobody told what a token should mean.

All are trained alike (`python -m training.variants`), for minutes, so that their pictures are soft: what both judges
read counts here, whether the picture is clean or not, and beside it stands what they read of mere reconstructions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenopt_core as to
from benchmarks.casebook import Case, mixed
from benchmarks.evidence_lab import Judged, Lab, Plan, fewer, summary
from benchmarks.evidence_parts import Part
from benchmarks.evidence_pasting import pasted_scenes, positions
from benchmarks.evidence_rates import Rate, compare, compare_numbers
from benchmarks.evidence_tables import about, likeness, paired, steps, table
from benchmarks.recipe_steps import changed
from benchmarks.recipes import read
from tokenopt_core.titok import MaskgitVQGAN
from training import variants as trained
from training.panel import Panel
from training.world import ATTRIBUTES, Album, Scene

WITHOUT = "without VQ"
SHIPPED_SETTINGS = "text_edit"  # the workflow whose settings are tried with each, beside the published ones
ALIKE = 1.0  # bits by which two tokenizers may differ that count as the same size


def found_in(folder: Path) -> list[Path]:
    """The folders of the trained ones."""
    return sorted(path.parent for path in folder.glob("*/model.safetensors"))


def laboratory(lab: Lab, folder: Path) -> Lab:
    """The same with these tokenizers, and judges for pictures of their size."""
    tokenizers = {path.name: trained.load(path) for path in found_in(folder)}
    sizes = {tokenizer.image_size for tokenizer in tokenizers.values()}
    if len(sizes) != 1:
        raise SystemExit(f"{folder.name} should hold tokenizers of one size, got {sorted(sizes)}: "
                         "python -m training.variants trains them")  # fmt: skip
    album = Album(sizes.pop())
    return replace(lab, album=album, judges=Panel(album), tokenizers=tokenizers)


def variants(lab: Lab, plan: Plan) -> Part:
    """Both tables, from the laboratory that `lab` has for them."""
    small, plan = lab.variants, fewer(plan)
    if small is None:
        raise SystemExit("no tokenizers are trained to compare: run python -m training.variants first")
    recipe, few, edits = steps()["+ EMA"], paired(small, plan, "top percent"), mixed(plan.seed, plan.n)
    loose = replace(recipe.with_loop(lambda stage: changed(stage, quantize=False)), quantize=False)
    shipped = read(SHIPPED_SETTINGS)
    names = sorted(small.tokenizers, key=lambda name: bits(small, name))
    with_codes = [name for name in names if small.tokenizers[name].codebook_size]
    plain = {name: small.run(f"variants, {name}", few, recipe, name) for name in names}
    edited = {name: small.run(f"variants, {name}, {SHIPPED_SETTINGS}", edits, shipped, name) for name in with_codes}
    free = {name: small.run(f"variants, {name}, {WITHOUT}", few, loose, name) for name in with_codes}

    two = table({name: plain[name] for name in with_codes}, tighter(small, plain, with_codes))
    two["rows"] |= {f"{name}, {SHIPPED_SETTINGS}": summary(judged) for name, judged in edited.items()}
    two["tokenizers"] = {name: about(small, name, edits) for name in names}
    three = table(plain | {f"{name}, {WITHOUT}": judged for name, judged in free.items()}, kinds(small, plain, free))
    return Part({
        "size": small.album.bytes.shape[-1],
        "settings": {"published": recipe.settings(), SHIPPED_SETTINGS: shipped.settings()},
        "tables": {"table 2": two, "table 3": three},
        "carries": {name: carries(small, name, pasted_scenes(plan)) for name in with_codes},
    })  # fmt: skip


def carries(lab: Lab, name: str, scenes: Sequence[Scene]) -> dict[str, Any]:
    """By attribute, the position whose paste brings it along most often: what a token means though nobody told it."""
    pasted, found = positions(lab, name, scenes), dict[str, Any]()
    opinions = lab.look(
        lab.reconstructions([Case("pasted", i, i, {}, "", scene) for i, scene in enumerate(scenes)], name)
    )
    for attribute in ATTRIBUTES:
        best = max(range(len(pasted)), key=lambda i: pasted[i][attribute]["reached"]["value"])
        # what is read wrong without any paste is no work of a token
        anyhow = [
            opinion.shows(attribute) == getattr(reference, attribute)
            for opinion, scene, reference in zip(opinions, scenes, [*scenes[1:], scenes[0]], strict=True)
            if getattr(scene, attribute) != getattr(reference, attribute)
        ]
        found[attribute] = {"position": best, "without": Rate.of(anyhow).to_json(), **pasted[best][attribute]}
    return found


def tighter(lab: Lab, plain: Mapping[str, list[Judged]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Table 2: what can say less leaves less room for pictures that are none."""
    sequences = [name for name in names if not on_a_grid(lab, name)]
    return [
        compare(f"{a} ({bits(lab, a):.0f} bits) beats {b} ({bits(lab, b):.0f} bits)", read_right(plain[b]),
                read_right(plain[a]))
        for a, b in pairwise(sequences)
    ]  # fmt: skip


def kinds(lab: Lab, plain: Mapping[str, list[Judged]], free: Mapping[str, list[Judged]]) -> list[dict[str, Any]]:
    """Table 3: the quantizer, continuous tokens, and tokens that each have a place."""
    found = []
    for name, judged in free.items():
        found += [
            compare(f"{name}: the quantizer makes for more success", read_right(judged), read_right(plain[name])),
            compare_numbers(f"{name}: without it the guiding CLIP is more pleased", likeness(plain[name]),
                            likeness(judged)),
        ]  # fmt: skip
    sequences = [name for name in free if not on_a_grid(lab, name)]
    for name in plain:
        if lab.tokenizers[name].codebook_size is None:
            rivals = [n for n in sequences if lab.tokenizers[n].num_tokens == lab.tokenizers[name].num_tokens]
        elif on_a_grid(lab, name):
            rivals = [n for n in sequences if abs(bits(lab, n) - bits(lab, name)) < ALIKE]
        else:
            continue
        found += [compare(f"{rival} beats {name}", read_right(plain[name]), read_right(plain[rival]))
                  for rival in rivals]  # fmt: skip
    return found


def read_right(judged: Sequence[Judged]) -> list[bool]:
    return [j.read for j in judged]


def on_a_grid(lab: Lab, name: str) -> bool:
    """Whether each token stands for a place of the picture."""
    tokenizer = lab.tokenizers[name]
    return isinstance(tokenizer, to.Tokenizer) and isinstance(tokenizer.model, MaskgitVQGAN)


def bits(lab: Lab, name: str) -> float:
    """How much a picture's tokens can say."""
    model = lab.tokenizers[name]
    return model.num_tokens * math.log2(model.codebook_size) if model.codebook_size else math.inf
