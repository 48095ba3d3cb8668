"""Holds the shipped models to what they must reach: `python training/check.py`; ends with 1 if they do not.

The table that it prints stands in the models' card.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path.insert(0, str(ROOT))

import tokenopt_core as to  # noqa: E402
from tokenopt_core.loading import MINI  # noqa: E402
from training.captions import full_caption, main_caption  # noqa: E402
from training.panel import Panel  # noqa: E402
from training.world import ATTRIBUTES, Album, Scene, all_scenes, held_out  # noqa: E402

PICTURES, SEED, AT_ONCE = 256, 2024, 32
HEARD = 1 / 255  # mean absolute change of the picture that a position's codes must make: a step of an 8-bit one


@dataclass(frozen=True)
class Gate:
    """A number, and what it must be at least; None: it is told, not judged."""

    what: str
    value: float
    least: float | None

    @property
    def passed(self) -> bool:
        return self.least is None or self.value >= self.least

    def __str__(self) -> str:
        verdict = "" if self.least is None else f"at least {self.least:g} | {'passed' if self.passed else 'FAILED'}"
        return f"| {self.what} | {self.value:.3f} | {verdict or ' | '} |"


@dataclass(frozen=True)
class Shown:
    """Pictures of scenes, as they are and through the tokenizer."""

    scenes: list[Scene]
    renders: Tensor
    reconstructions: Tensor


def in_parts(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([run(part) for part in images.split(AT_ONCE)])


def show(tokenizer: to.Tokenizer, album: Album, unseen: bool, count: int) -> Shown:
    """So many scenes whose combination was, or was not, part of the training."""
    scenes = random.Random(SEED).sample([scene for scene in all_scenes() if held_out(scene) == unseen], count)
    renders = album.pictures(scenes)
    return Shown(scenes, renders, in_parts(lambda x: tokenizer.decode(tokenizer.encode(x)).clamp(0, 1), renders))


def psnr(a: Tensor, b: Tensor) -> float:
    return float((-10 * (a - b).square().mean((1, 2, 3)).log10()).mean())


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def tokenizer_gates(shown: Shown, panel: Panel, kind: str) -> list[Gate]:
    """How near reconstructions are, and whether both judges read them as they read the renders."""
    read = {name: panel(images) for name, images in (("r", shown.renders), ("d", shown.reconstructions))}
    right = {
        (name, attribute): share(
            [o.shows(attribute) == getattr(s, attribute) for o, s in zip(opinions, shown.scenes, strict=True)]
        )
        for name, opinions in read.items()
        for attribute in ATTRIBUTES
    }
    gates = [Gate(f"{kind}: reconstruction, dB", psnr(shown.reconstructions, shown.renders), 30.0)]
    for attribute in ATTRIBUTES:
        least = 0.95 * right["r", attribute] if attribute == "subject" else None
        gates.append(Gate(f"{kind}: {attribute} read on reconstructions", right["d", attribute], least))
    return [*gates, Gate(f"{kind}: called clean", share([o.clean for o in read["d"]]), None)]


def code_gates(tokenizer: to.Tokenizer, shown: Shown) -> list[Gate]:
    """Codes in use, and whether every position is heard: exchanging its token between pictures changes them."""
    features = in_parts(tokenizer.encode, shown.renders)
    used = tokenizer.indices(features)
    moved = []
    for position in range(tokenizer.num_tokens):
        other = features.clone()
        other[:, position] = features.roll(1, 0)[:, position]
        changed = in_parts(lambda z: tokenizer.decode(z).clamp(0, 1), other[:64])
        moved.append(float((changed - shown.reconstructions[:64]).abs().mean()))
    assert tokenizer.codebook_size
    in_use = used.unique().numel() / tokenizer.codebook_size
    return [
        Gate("codes in use, of all", in_use, 0.75),
        Gate("least heard position: change of the picture", min(moved), HEARD),
    ]


def clip_gates(clip: to.Clip, shown: Shown, kind: str) -> list[Gate]:
    """Picture -> caption, among all captions of subject, ground, lighting and size; and among those without size."""
    gates = []
    for what, images, least in (("renders", shown.renders, 0.95), ("reconstructions", shown.reconstructions, 0.90)):
        embedded = in_parts(clip.embed_image, images)
        for caption, asked, limit in ((full_caption, "with its size", least), (main_caption, "without", least)):
            texts = list(dict.fromkeys(caption(scene).text() for scene in all_scenes()))
            known = torch.cat([clip.embed_text(texts[i : i + 256]) for i in range(0, len(texts), 256)])
            best = (embedded @ known.T).argmax(1).tolist()
            right = [texts[i] == caption(s).text() for i, s in zip(best, shown.scenes, strict=True)]
            gates.append(Gate(f"{kind}: caption of {len(texts)} ({asked}) on {what}", share(right), limit))
    return gates


def megabytes() -> float:
    folders = (MINI / name for name in ("tokenizer", "clip", "judge"))
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) / 1e6


@torch.no_grad()
def gates(count: int = PICTURES) -> list[Gate]:
    """Everything the models must reach, on so many pictures of each kind."""
    tokenizer, clip, album = to.load_tokenizer("mini"), to.load_clip("mini"), Album()
    panel, found = Panel(album), []
    for unseen, kind in ((False, "seen combinations"), (True, "held-out combinations")):
        shown = show(tokenizer, album, unseen, count)
        found += tokenizer_gates(shown, panel, kind) + clip_gates(clip, shown, kind)
        found += [] if unseen else code_gates(tokenizer, shown)
    return [*found, Gate("megabytes below 25", 25 - megabytes(), 0.0)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=PICTURES, help="of each kind")
    found = gates(parser.parse_args().pictures)
    print("| what | value | must be | |\n| --- | ---: | --- | --- |", *found, sep="\n")
    return 0 if all(gate.passed for gate in found) else 1


if __name__ == "__main__":
    sys.exit(main())
