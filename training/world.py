"""The mini world: cut-out subjects on procedural landscapes, every picture with its attributes and its subject mask.

A scene is fully described by a `Scene`; the same scene always renders to the same picture. Cut-outs: Fluent Emoji 3D
(see assets/NOTICE.md).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

ASSETS = Path(__file__).parent / "assets"
SIZE = 128  # px, of the shipped models
SUBJECTS = (
    "apple",
    "car",
    "cupcake",
    "elephant",
    "fox",
    "frog",
    "gift",
    "grapes",
    "house",
    "lemon",
    "mushroom",
    "panda",
    "penguin",
    "robot",
    "sunflower",
    "tree",
)
GROUNDS = ("grass", "sand", "snow", "water")
LIGHTINGS = ("day", "sunset", "night", "fog")
SIZES = ("small", "large")
PLACES = ("left", "middle", "right")
FOCUSES = ("sharp", "background", "soft")  # all sharp, the background blurred, all blurred
ATTRIBUTES = {
    "subject": SUBJECTS,
    "ground": GROUNDS,
    "lighting": LIGHTINGS,
    "size": SIZES,
    "place": PLACES,
    "focus": FOCUSES,
}

HORIZON = 0.60  # where sky meets ground, as a share of the height
SUN = 0.85  # where sun and moon stand, as a share of the width
OVERSAMPLING = 4
_SCALE = {"small": 0.40, "large": 0.58}  # of the picture's side
_CENTRE = {"left": 0.25, "middle": 0.5, "right": 0.75}  # as a share of the width: whole patches of 16 px apart
BLUR = {"background": 0.036, "soft": 0.018}  # standard deviation, of the picture's side

# sky at the top, sky at the horizon, hills, the light that multiplies ground and subject
_LIGHT = {
    "day": ((60, 130, 220), (190, 222, 245), (104, 140, 120), (1.0, 1.0, 1.0)),
    "sunset": ((96, 64, 140), (255, 168, 92), (110, 88, 104), (1.0, 0.76, 0.66)),
    "night": ((8, 10, 36), (38, 48, 104), (26, 32, 62), (0.52, 0.54, 0.76)),
    "fog": ((172, 178, 184), (208, 212, 214), (186, 192, 196), (0.90, 0.92, 0.94)),
}
# near colour, far colour, strength of the texture
_GROUND = {
    "grass": ((70, 160, 50), (110, 190, 80), 0.22),
    "sand": ((226, 190, 130), (240, 214, 164), 0.10),
    "snow": ((236, 240, 246), (222, 230, 242), 0.05),
    "water": ((20, 96, 170), (60, 150, 205), 0.20),
}
_FOG = np.array((204, 208, 211), np.float32) / 255
_FOG_SUBJECT, _FOG_NEAR, _FOG_FAR = 0.22, 0.25, 0.80  # how much of the fog lies over subject and ground


@dataclass(frozen=True)
class Scene:
    """The attributes of one picture."""

    subject: str
    ground: str
    lighting: str
    size: str = "large"
    place: str = "middle"
    focus: str = "sharp"


def all_scenes() -> list[Scene]:
    """Every scene of the world, in a fixed order."""
    return [Scene(*values) for values in itertools.product(*ATTRIBUTES.values())]


def values_of(scene: Scene) -> list[int]:
    """A scene's attributes as numbers, in the order of `ATTRIBUTES`."""
    return [kinds.index(getattr(scene, name)) for name, kinds in ATTRIBUTES.items()]


def held_out(scene: Scene) -> bool:
    """One in sixteen combinations of subject, ground and lighting is never shown in training."""
    subject, ground, lighting, *_ = values_of(scene)
    return (subject + 5 * ground + 7 * lighting) % 16 == 0


def sample_scenes(count: int, rng: random.Random, keep_held_out: bool = False) -> list[Scene]:
    """`count` scenes drawn at random, with or without the held-out combinations."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = Scene(*(rng.choice(kinds) for kinds in ATTRIBUTES.values()))
        if keep_held_out or not held_out(scene):
            scenes.append(scene)
    return scenes


def _noise(shape: tuple[int, int], scale: tuple[float, float], seed: int) -> np.ndarray:
    """Smooth noise in about [-1, 1], its grain `scale` = (rows, columns) as shares of the side."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-1, 1, (max(2, round(1 / scale[0])), max(2, round(1 / scale[1])))).astype(np.float32)
    return F.interpolate(torch.from_numpy(coarse)[None, None], shape, mode="bicubic", align_corners=True)[0, 0].numpy()


def _mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    return a + (b - a) * t[..., None]


def _sky(lighting: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Gradient, sun or moon with its glow, stars at night, hills; (H, W, 3) in [0, 1]."""
    top, bottom, hills, _ = (np.array(c, np.float32) / (255 if max(c) > 1.5 else 1) for c in _LIGHT[lighting])
    sky = _mix(top, bottom, np.clip(y / HORIZON, 0, 1) ** 1.3)
    if lighting != "fog":
        sky = _sun(sky, lighting, y, x)
    ridge = HORIZON - 0.05 - 0.035 * np.sin(7.0 * x + 0.6) - 0.025 * np.sin(15.0 * x + 2.0)
    return _mix(sky, hills, np.clip((y - ridge) * 150, 0, 1))


def _sun(sky: np.ndarray, lighting: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The sky with sun or moon, and stars at night."""
    centre = (SUN, HORIZON - 0.14 if lighting == "sunset" else 0.16)
    distance = np.hypot(x - centre[0], y - centre[1])
    disc = np.array((236, 236, 216) if lighting == "night" else (255, 240, 150), np.float32) / 255
    glow = np.exp(-((distance / 0.16) ** 2)) * (0.25 if lighting == "night" else 0.6)
    sky = _mix(sky, disc, glow)
    body = np.clip((0.075 - distance) * 200, 0, 1)
    if lighting == "night":  # a crescent: a second disc takes a bite out of the first
        body = body * np.clip((np.hypot(x - centre[0] - 0.045, y - centre[1] + 0.02) - 0.065) * 200, 0, 1)
        rng = np.random.default_rng(7)
        for sx, sy, r in zip(
            rng.uniform(0, 1, 24), rng.uniform(0, 0.5, 24), rng.uniform(0.006, 0.011, 24), strict=True
        ):
            star = np.clip((r - np.hypot(x - sx, y - sy)) * 300, 0, 1) * np.clip((distance - 0.12) * 50, 0, 1)
            sky = _mix(sky, np.ones(3, np.float32), star * 0.9)
    return _mix(sky, disc, body)


def _background(lighting: str, ground: str, size: int) -> Tensor:
    """One landscape without a subject, (3, size, size) in [0, 1]."""
    big = size * OVERSAMPLING
    y, x = np.meshgrid(*[(np.arange(big, dtype=np.float32) + 0.5) / big] * 2, indexing="ij")
    near, far, strength = _GROUND[ground]
    depth = np.clip((y - HORIZON) / (1 - HORIZON), 0, 1)
    grain = (0.028, 0.11) if ground == "water" else (0.035, 0.035)
    texture = _noise((big, big), grain, seed=GROUNDS.index(ground)) * strength * (0.35 + 0.65 * depth)
    floor = _mix(np.array(far, np.float32) / 255, np.array(near, np.float32) / 255, depth) * (1 + texture[..., None])
    floor = floor * np.array(_LIGHT[lighting][3], np.float32)
    if lighting == "fog":
        floor = _mix(floor, _FOG, _FOG_FAR + (_FOG_NEAR - _FOG_FAR) * depth)
    picture = _mix(_sky(lighting, y, x), floor, np.clip((y - HORIZON) * 200, 0, 1))
    return F.avg_pool2d(torch.from_numpy(picture.clip(0, 1)).permute(2, 0, 1)[None].float(), OVERSAMPLING)[0]


@cache
def _cutout(subject: str) -> Image.Image:
    picture = Image.open(ASSETS / f"{subject}.webp").convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox())


def _foot(scale: float) -> float:
    return HORIZON + 0.12 + 0.22 * scale  # nearer subjects are larger and stand lower


def _sprite(subject: str, scale: float, x: float, size: int) -> Tensor:
    """The cut-out standing on the ground at `x`, premultiplied, (4, size, size)."""
    cutout = _cutout(subject)
    big = size * OVERSAMPLING
    ratio = scale * big / max(cutout.size)
    cutout = cutout.resize((round(cutout.width * ratio), round(cutout.height * ratio)), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (big, big))
    canvas.paste(cutout, (round(x * big - cutout.width / 2), round(_foot(scale) * big - cutout.height)))
    sprite = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255
    sprite[:3] *= sprite[3:]
    return F.avg_pool2d(sprite[None], OVERSAMPLING)[0]


def _shadow(scale: float, x: float, size: int) -> Tensor:
    """How much the ground under the subject is darkened, (1, size, size) in [0, 1]."""
    v, u = np.meshgrid(*[(np.arange(size, dtype=np.float32) + 0.5) / size] * 2, indexing="ij")
    foot = _foot(scale) - 0.015
    falloff = np.exp(-((((u - x) / (0.42 * scale)) ** 2 + ((v - foot) / 0.035) ** 2) ** 1.5))
    return torch.from_numpy(0.5 * falloff)[None]


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Pictures (B, C, S, S) through a Gaussian blur; `sigma` as a share of the side."""
    sigma = sigma * images.shape[-1]
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=images.dtype) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    for dim in (-1, -2):
        pad = (reach, reach, 0, 0) if dim == -1 else (0, 0, reach, reach)
        weight = kernel.unsqueeze(-2 if dim == -1 else -1)
        images = F.conv2d(F.pad(images, pad, mode="replicate"), weight, groups=images.shape[1])
    return images


class World:
    """Renders scenes at one picture size; all parts are prepared once, so that a batch costs a few gathers."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        sharp = {key: _background(*key, size) for key in itertools.product(LIGHTINGS, GROUNDS)}
        self._backgrounds = {(*key, False): value for key, value in sharp.items()}
        far = blurred(torch.stack(list(sharp.values())), BLUR["background"])
        self._backgrounds |= {(*key, True): value for key, value in zip(sharp, far, strict=True)}
        places = list(itertools.product(SIZES, PLACES))
        self._shadows = {(s, p): _shadow(_SCALE[s], _CENTRE[p], size) for s, p in places}
        self._sprites = {(n, s, p): _sprite(n, _SCALE[s], _CENTRE[p], size) for n in SUBJECTS for s, p in places}
        self._light = {k: torch.tensor(v[3]).view(3, 1, 1) for k, v in _LIGHT.items()}

    def render(self, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) in [0, 1] and the subjects' masks (B, 1, S, S)."""
        backgrounds = torch.stack([self._backgrounds[s.lighting, s.ground, s.focus == "background"] for s in scenes])
        sprites = torch.stack([self._sprites[s.subject, s.size, s.place] for s in scenes])
        shadows = torch.stack([self._shadows[s.size, s.place] for s in scenes])
        light = torch.stack([self._light[s.lighting] for s in scenes])
        colours, masks = sprites[:, :3] * light, sprites[:, 3:]
        foggy = torch.tensor([s.lighting == "fog" for s in scenes]).float().view(-1, 1, 1, 1) * _FOG_SUBJECT
        colours = torch.lerp(colours, masks * torch.from_numpy(_FOG).view(3, 1, 1), foggy)
        images = backgrounds * (1 - shadows * (1 - foggy)) * (1 - masks) + colours
        soft = torch.tensor([s.focus == "soft" for s in scenes])
        if soft.any():
            images[soft] = blurred(images[soft], BLUR["soft"])
        return images, masks


class Album:
    """Every picture of the world as bytes: for those who need many of them, again and again."""

    def __init__(self, size: int = SIZE) -> None:
        self.scenes = all_scenes()
        self.number = {scene: number for number, scene in enumerate(self.scenes)}
        self.world = World(size)
        parts = [self.world.render(self.scenes[i : i + 64])[0] for i in range(0, len(self.scenes), 64)]
        self.bytes = torch.cat([part.mul(255).round().byte() for part in parts])  # (scenes, 3, S, S)

    def pictures(self, scenes: list[Scene]) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1], as an 8-bit file would hold them."""
        return self.bytes[[self.number[scene] for scene in scenes]].float() / 255

    def masks(self, scenes: list[Scene]) -> Tensor:
        """The subjects' masks (B, 1, S, S)."""
        sprites = self.world._sprites
        return torch.stack([sprites[s.subject, s.size, s.place][3:] for s in scenes])
