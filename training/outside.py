"""Measures which pictures the mini tokenizer does not know: `python -m training.outside [--folder PHOTOGRAPHS]`.

Pictures of the world go through the tokenizer, as rendered and as a user may hand them over: compressed, of another
size, lighter, darker, noisy, a little cropped, partly hidden. What one in a hundred of those falls short of becomes the
limit in world.json, below which Encode to Features says that a picture shows something else. Pictures of other things
are drawn and held against it, and those of a folder if there is one; nothing is set by them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import tokenopt_core as to
from tokenopt_core.canvas import fit, resize
from tokenopt_core.loading import MINI
from tokenopt_core.masks import FILLS, fill_hole, soften
from tokenopt_core.outside import FILE, KnownWorld, likeness
from tokenopt_core.pictures import find_pictures, read_picture
from training.world import ATTRIBUTES, World, sample_scenes

COUNT, SEED, AT_ONCE = 64, 9, 32
TOLERATED = 0.01  # share of the disturbed pictures of the world that are taken for strangers
HIDDEN = (0.25, 0.48)  # shares of the picture
FEATHER = 2.0  # px
*GROUNDS, LAST = ATTRIBUTES["ground"]
WHAT = f"a small world of {len(ATTRIBUTES['subject'])} subjects on {', '.join(GROUNDS)} or {LAST} (see Sample Picture)"

Kinds = dict[str, tuple[Tensor, Tensor, Tensor]]  # name -> pictures, what the encoder is shown, which of it is known


def disturbed(images: Tensor, rng: random.Random) -> Kinds:
    """Pictures of the world (B, 3, S, S) as a user may hand them over."""
    size, seen = images.shape[-1], torch.ones_like(images[:, :1])
    turned: dict[str, Tensor] = {
        "rendered": images,
        "JPEG, quality 40": torch.stack([compressed(image, 40) for image in images]),
        "of half the size": resize(resize(images, size // 2), size),
        "lighter": (1.15 * images).clamp(0, 1),
        "darker": 0.85 * images,
        "noisy": (images + 0.05 * torch.randn_like(images)).clamp(0, 1),
        "cropped to 95 %": torch.cat([cropped(image[None], 0.95, rng) for image in images]),
        "with a border": resize(F.pad(images, (size // 20,) * 4, mode="replicate"), size),
    }
    kinds = {name: (pictures, pictures, seen) for name, pictures in turned.items()}
    for share in HIDDEN:
        hole = soften(torch.cat([box(size, share, rng) for _ in images]), FEATHER)
        for fill in FILLS:
            kinds[f"{share:.0%} hidden, {fill}"] = (images, fill_hole(images, hole, fill), 1 - hole)
    return kinds


def compressed(image: Tensor, quality: int) -> Tensor:
    file = BytesIO()
    to_pil_image(image).save(file, "JPEG", quality=quality)
    return pil_to_tensor(Image.open(file)) / 255


def cropped(image: Tensor, share: float, rng: random.Random) -> Tensor:
    """A square of a picture (1, 3, S, S), back in its size; `share` of its side."""
    size = image.shape[-1]
    side = round(share * size)
    y, x = rng.randint(0, size - side), rng.randint(0, size - side)
    return resize(image[..., y : y + side, x : x + side], size)


def box(size: int, share: float, rng: random.Random) -> Tensor:
    """A mask (1, 1, size, size) that hides a square of this share of the picture."""
    side, mask = round(size * math.sqrt(share)), torch.zeros(1, 1, size, size)
    y, x = rng.randint(0, size - side), rng.randint(0, size - side)
    mask[..., y : y + side, x : x + side] = 1
    return mask


def strangers(count: int, size: int, rng: random.Random) -> dict[str, Tensor]:
    """Pictures of other things, (count, 3, size, size) each. Noise of a falling spectrum is like photographs."""
    colours = torch.rand(2, count, 3, 1, 1)
    down = torch.linspace(0, 1, size).view(1, 1, -1, 1)
    return {
        "noise": spectral(count, size, 0.0),
        "noise of spectrum 1 / f": spectral(count, size, 1.0),
        "noise of spectrum 1 / f ^ 1.5": spectral(count, size, 1.5),
        "clouds": spectral(count, size, 2.0),
        "flat colours": colours[0].expand(-1, -1, size, size),
        "gradients": torch.lerp(colours[0], colours[1], down).expand(-1, -1, -1, size),
        "shapes": torch.stack([drawn(size, rng, shapes) for _ in range(count)]),
        "drawn landscapes": torch.stack([drawn(size, rng, landscape) for _ in range(count)]),
    }


def spectral(count: int, size: int, power: float) -> Tensor:
    """Noise in colour whose amplitude falls with this power of the frequency."""
    line = torch.fft.fftfreq(size)
    frequency = torch.hypot(line[:, None], line).clamp(min=1 / size)
    noise = torch.fft.ifft2(torch.fft.fft2(torch.randn(count, 3, size, size)) / frequency**power).real
    noise = torch.einsum("bcd,bdhw->bchw", torch.eye(3) + 0.5 * torch.randn(count, 3, 3), noise)
    noise = (noise - noise.mean((2, 3), keepdim=True)) / noise.std((1, 2, 3), keepdim=True)
    return (0.5 + 0.15 * torch.randn(count, 3, 1, 1) + 0.2 * noise).clamp(0, 1)


def drawn(size: int, rng: random.Random, draw: Callable[[ImageDraw.ImageDraw, int, random.Random], None]) -> Tensor:
    picture = Image.new("RGB", (size, size), colour(rng))
    draw(ImageDraw.Draw(picture), size, rng)
    return pil_to_tensor(picture) / 255


def colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def shapes(draw: ImageDraw.ImageDraw, size: int, rng: random.Random) -> None:
    for _ in range(rng.randint(3, 12)):
        (left, right), (top, bottom) = (sorted(rng.choices(range(size), k=2)) for _ in range(2))
        rng.choice((draw.ellipse, draw.rectangle, draw.line))((left, top, right, bottom), fill=colour(rng))


def landscape(draw: ImageDraw.ImageDraw, size: int, rng: random.Random) -> None:
    """Something with a roof between a sky and a ground, all of one colour."""
    horizon, width, high = (round(rng.uniform(*span) * size) for span in ((0.35, 0.75), (0.2, 0.5), (0.15, 0.35)))
    left = rng.randint(0, size - width)
    draw.rectangle((0, horizon, size, size), fill=colour(rng))
    draw.rectangle((left, horizon - high, left + width, horizon + size // 12), fill=colour(rng))
    roof = [(left, horizon - high), (left + width // 2, horizon - 2 * high), (left + width, horizon - high)]
    draw.polygon(roof, fill=colour(rng))


@torch.no_grad()
def scores(tokenizer: to.Tokenizer, pictures: Tensor, shown: Tensor, known: Tensor) -> Tensor:
    """The likeness of each picture to what is decoded, (B,)."""
    parts = zip(*(part.split(AT_ONCE) for part in (pictures, shown, known)), strict=True)
    return torch.cat([likeness(a, tokenizer.decode(tokenizer.encode(b)), c) for a, b, c in parts])


def measure(tokenizer: to.Tokenizer, count: int = COUNT) -> tuple[KnownWorld, dict[str, float], dict[str, float]]:
    """The limit, and by kind of picture the shares of own and of other ones that fall short of it."""
    rng, size = random.Random(SEED), tokenizer.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        images = World(size).render(sample_scenes(count, rng, keep_held_out=True))[0]
        own = {name: scores(tokenizer, *kind) for name, kind in disturbed(images, rng).items()}
        others = {name: unmasked(tokenizer, pictures) for name, pictures in strangers(count, size, rng).items()}
    limit = round(float(torch.cat([*own.values()]).quantile(TOLERATED)), 1)
    return KnownWorld(WHAT, limit), shares_below(limit, own), shares_below(limit, others)


def shares_below(limit: float, kinds: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((values < limit).float().mean()) for name, values in kinds.items()}


def unmasked(tokenizer: to.Tokenizer, pictures: Tensor) -> Tensor:
    return scores(tokenizer, pictures, pictures, torch.ones_like(pictures[:, :1]))


def write(path: Path, world: KnownWorld, own: dict[str, float], others: dict[str, float]) -> None:
    entries = {
        "made_by": "python -m training.outside",
        "what": world.what,
        "least_likeness": world.least_likeness,
        "taken_for_strangers": {name: round(share, 3) for name, share in (own | others).items()},
    }
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="mini", help="a name or a folder")
    parser.add_argument("--folder", type=Path, help="with pictures, such as photographs, to hold against the limit")
    parser.add_argument("--out", type=Path, default=MINI / "tokenizer" / FILE)
    arguments = parser.parse_args()
    tokenizer = to.load_tokenizer(arguments.tokenizer)
    world, own, others = measure(tokenizer)
    write(arguments.out, world, own, others)
    print(f"likeness at least {world.least_likeness} dB. Taken for strangers, of {COUNT} pictures each:")
    for name, share in (own | others).items():
        print(f"  {name}: {share:.1%}")
    for path in find_pictures(arguments.folder).files if arguments.folder else ():
        score = float(unmasked(tokenizer, fit(read_picture(path)[None], None, tokenizer.image_size)[0]))
        print(f"  {path.name}: {score:.1f} dB{'' if score < world.least_likeness else ', NOT taken for a stranger'}")


if __name__ == "__main__":
    main()
