"""Measures the shipped models: `python -m training.check`. What it prints stands in their card."""

from __future__ import annotations

import random
from itertools import product

import torch
from torch import Tensor

import tokenopt_core as to
from training.captions import Caption, all_captions, full_caption
from training.judge import Judge, Verdict
from training.showcase import edit
from training.world import GROUNDS, LIGHTINGS, SUBJECTS, Scene, World, all_scenes, held_out

PICTURES = 512
EDITS = 6  # of each kind
ATTRIBUTES = {"lighting": LIGHTINGS, "ground": GROUNDS, "subject": SUBJECTS}
SEED = 2024


def named(scene: Scene) -> dict[str, str]:
    """The attributes that a prompt can name."""
    return {name: getattr(scene, name) for name in ATTRIBUTES}


def psnr(a: Tensor, b: Tensor) -> float:
    return float((-10 * (a - b).square().mean((1, 2, 3)).log10()).mean())


def share(flags: list[bool]) -> str:
    return f"{sum(flags) / len(flags):.2f} (n = {len(flags)})"


def reading(verdicts: list[Verdict], scenes: list[Scene]) -> str:
    return share([v.agrees(**named(s)) for v, s in zip(verdicts, scenes, strict=True)])


@torch.no_grad()
def reconstructions(tokenizer: to.Tokenizer, clip: to.Clip, judge: Judge, world: World) -> None:
    """Pictures of seen and of held-out combinations, through the tokenizer, read by CLIP and judge."""
    captions = [Caption(*kind) for kind in product(SUBJECTS, GROUNDS, LIGHTINGS)]
    texts = clip.embed_text([caption.text() for caption in captions])
    for unseen in (False, True):
        scenes = random.Random(SEED).sample([s for s in all_scenes() if held_out(s) == unseen], PICTURES)
        images = world.render(scenes)[0]
        decoded = tokenizer.decode(tokenizer.encode(images)).clamp(0, 1)
        kind = "held-out combinations" if unseen else "combinations seen in training"
        print(f"{kind}: reconstruction {psnr(decoded, images):.2f} dB, judge {reading(judge(decoded), scenes)}")
        for what, shown in (("renders", images), ("reconstructions", decoded)):
            best = (clip.embed_image(shown) @ texts.T).argmax(1).tolist()
            right = [captions[i] == full_caption(s) for i, s in zip(best, scenes, strict=True)]
            print(f"  CLIP, caption of {len(captions)}: {share(right)} on {what}")


def edits(tokenizer: to.Tokenizer, clip: to.Clip, judge: Judge, world: World) -> None:
    """One attribute changed at a time with the example workflow's settings; everything named in the prompt."""
    rng = random.Random(SEED)
    for attribute, values in ATTRIBUTES.items():
        scenes = rng.sample([s for s in all_scenes() if not held_out(s)], EDITS)
        reached, kept, clean, found = [], [], [], []
        for number, scene in enumerate(scenes):
            target = rng.choice([value for value in values if value != getattr(scene, attribute)])
            wanted = named(scene) | {attribute: target}
            prompt = Caption(**wanted).text()
            (verdict,) = judge(edit(tokenizer, clip, world.render([scene])[0], prompt, seed=number))
            others = {name: value for name, value in wanted.items() if name != attribute}
            reached.append(verdict.agrees(**{attribute: target}))
            kept.append(all(getattr(verdict.scene, name) == value for name, value in others.items()))
            clean.append(verdict.clean)
            found.append(verdict.agrees(**wanted))
        print(
            f"{attribute} edits: reached {share(reached)}, the rest kept {share(kept)}, clean {share(clean)}, "
            f"all of it {share(found)}"
        )


@torch.no_grad()
def floors(tokenizer: to.Tokenizer, judge: Judge) -> None:
    """What the judge makes of garbage, and how the codes are used."""
    generator = torch.Generator().manual_seed(SEED)
    indices = torch.randint(tokenizer.codebook_size or 1, (PICTURES, tokenizer.num_tokens), generator=generator)
    garbage = tokenizer.decode(tokenizer.lookup(indices), quantize=False)
    print(f"random tokens: clean {share([v.clean for v in judge(garbage)])}")


def main() -> None:
    tokenizer, clip = to.load_tokenizer("mini"), to.load_clip("mini")
    judge, world = Judge(tokenizer.image_size), World(tokenizer.image_size)
    print(f"tokenizer {sum(p.numel() for p in tokenizer.parameters()) / 1e6:.2f} M parameters, "
          f"CLIP {sum(p.numel() for p in clip.parameters()) / 1e6:.2f} M, {len(all_captions())} captions")  # fmt: skip
    reconstructions(tokenizer, clip, judge, world)
    floors(tokenizer, judge)
    edits(tokenizer, clip, judge, world)


if __name__ == "__main__":
    main()
