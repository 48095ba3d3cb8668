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
SUBJECTS = (
    "apple",
    "car",
    "fox",
    "frog",
    "gift",
    "house",
    "lemon",
    "mushroom",
    "panda",
    "penguin",
    "sunflower",
    "tree",
)
GROUNDS = ("grass", "sand", "snow", "water")
LIGHTINGS = ("day", "sunset", "night")
SIZES = (0.46, 0.58, 0.70)  # of the picture's side
POSITIONS = tuple(round(0.34 + 0.04 * i, 2) for i in range(9))  # the subject's centre, as a share of the width
SUNS = ("left", "right")

HORIZON = 0.60  # where sky meets ground, as a share of the height
OVERSAMPLING = 4

# sky at the top, sky at the horizon, hills, the light that multiplies ground and subject
_LIGHT = {
    "day": ((60, 130, 220), (190, 222, 245), (104, 140, 120), (1.0, 1.0, 1.0)),
    "sunset": ((96, 64, 140), (255, 168, 92), (110, 88, 104), (1.0, 0.76, 0.66)),
    "night": ((8, 10, 36), (38, 48, 104), (26, 32, 62), (0.44, 0.48, 0.74)),
}
# near colour, far colour, strength of the texture
_GROUND = {
    "grass": ((70, 160, 50), (110, 190, 80), 0.22),
    "sand": ((226, 190, 130), (240, 214, 164), 0.10),
    "snow": ((236, 240, 246), (222, 230, 242), 0.05),
    "water": ((20, 96, 170), (60, 150, 205), 0.20),
}


@dataclass(frozen=True)
class Scene:
    """The attributes of one picture."""

    subject: str
    ground: str
    lighting: str
    size: float = SIZES[1]
    x: float = 0.5
    sun: str = "left"


def all_scenes() -> list[Scene]:
    """Every scene of the world, in a fixed order."""
    return [Scene(*values) for values in itertools.product(SUBJECTS, GROUNDS, LIGHTINGS, SIZES, POSITIONS, SUNS)]


def held_out(scene: Scene) -> bool:
    """One in twelve combinations of subject, ground and lighting is never shown in training."""
    subject, ground, lighting = (
        kinds.index(value)
        for kinds, value in ((SUBJECTS, scene.subject), (GROUNDS, scene.ground), (LIGHTINGS, scene.lighting))
    )
    return (subject + 5 * ground + 7 * lighting) % 12 == 0


def sample_scenes(count: int, rng: random.Random, keep_held_out: bool = False) -> list[Scene]:
    """`count` scenes drawn at random, with or without the held-out combinations."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = Scene(*(rng.choice(k) for k in (SUBJECTS, GROUNDS, LIGHTINGS, SIZES, POSITIONS, SUNS)))
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


def _sky(lighting: str, sun: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Gradient, sun or moon with its glow, stars at night, hills; (H, W, 3) in [0, 1]."""
    top, bottom, hills, _ = (np.array(c, np.float32) / (255 if max(c) > 1.5 else 1) for c in _LIGHT[lighting])
    sky = _mix(top, bottom, np.clip(y / HORIZON, 0, 1) ** 1.3)
    centre = (0.16 if sun == "left" else 0.84, HORIZON - 0.08 if lighting == "sunset" else 0.16)
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
    sky = _mix(sky, disc, body)
    ridge = HORIZON - 0.05 - 0.035 * np.sin(7.0 * x + 0.6) - 0.025 * np.sin(15.0 * x + 2.0)
    return _mix(sky, hills, np.clip((y - ridge) * 150, 0, 1))


def _background(lighting: str, ground: str, sun: str, size: int) -> Tensor:
    """One landscape without a subject, (3, size, size) in [0, 1]."""
    big = size * OVERSAMPLING
    y, x = np.meshgrid(*[(np.arange(big, dtype=np.float32) + 0.5) / big] * 2, indexing="ij")
    near, far, strength = _GROUND[ground]
    depth = np.clip((y - HORIZON) / (1 - HORIZON), 0, 1)
    grain = (0.028, 0.11) if ground == "water" else (0.035, 0.035)
    texture = _noise((big, big), grain, seed=GROUNDS.index(ground)) * strength * (0.35 + 0.65 * depth)
    floor = _mix(np.array(far, np.float32) / 255, np.array(near, np.float32) / 255, depth) * (1 + texture[..., None])
    floor = floor * np.array(_LIGHT[lighting][3], np.float32)
    picture = _mix(_sky(lighting, sun, y, x), floor, np.clip((y - HORIZON) * 200, 0, 1))
    return F.avg_pool2d(torch.from_numpy(picture.clip(0, 1)).permute(2, 0, 1)[None].float(), OVERSAMPLING)[0]


@cache
def _cutout(subject: str) -> Image.Image:
    picture = Image.open(ASSETS / f"{subject}.webp").convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox())


def _sprite(subject: str, scale: float, x: float, size: int) -> Tensor:
    """The cut-out standing on the ground at `x`, premultiplied, (4, size, size)."""
    cutout = _cutout(subject)
    big = size * OVERSAMPLING
    ratio = scale * big / max(cutout.size)
    cutout = cutout.resize((round(cutout.width * ratio), round(cutout.height * ratio)), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (big, big))
    foot = HORIZON + 0.12 + 0.22 * scale  # nearer subjects are larger and stand lower
    canvas.paste(cutout, (round(x * big - cutout.width / 2), round(foot * big - cutout.height)))
    sprite = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255
    sprite[:3] *= sprite[3:]
    return F.avg_pool2d(sprite[None], OVERSAMPLING)[0]


def _shadow(scale: float, x: float, size: int) -> Tensor:
    """How much the ground under the subject is darkened, (1, size, size) in [0, 1]."""
    v, u = np.meshgrid(*[(np.arange(size, dtype=np.float32) + 0.5) / size] * 2, indexing="ij")
    foot = HORIZON + 0.12 + 0.22 * scale - 0.015
    falloff = np.exp(-((((u - x) / (0.42 * scale)) ** 2 + ((v - foot) / 0.035) ** 2) ** 1.5))
    return torch.from_numpy(0.5 * falloff)[None]


class World:
    """Renders scenes at one picture size; all parts are prepared once, so that a batch costs a few gathers."""

    def __init__(self, size: int) -> None:
        self.size = size
        keys = list(itertools.product(LIGHTINGS, GROUNDS, SUNS))
        self._backgrounds = dict(zip(keys, (_background(*key, size) for key in keys), strict=True))
        places = list(itertools.product(SIZES, POSITIONS))
        self._shadows = {place: _shadow(*place, size) for place in places}
        self._sprites = {(s, *place): _sprite(s, *place, size) for s in SUBJECTS for place in places}
        self._light = {k: torch.tensor(v[3]).view(3, 1, 1) for k, v in _LIGHT.items()}

    def render(self, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) in [0, 1] and the subjects' masks (B, 1, S, S)."""
        backgrounds = torch.stack([self._backgrounds[s.lighting, s.ground, s.sun] for s in scenes])
        sprites = torch.stack([self._sprites[s.subject, s.size, s.x] for s in scenes])
        shadows = torch.stack([self._shadows[s.size, s.x] for s in scenes])
        light = torch.stack([self._light[s.lighting] for s in scenes])
        colours, masks = sprites[:, :3] * light, sprites[:, 3:]
        return backgrounds * (1 - shadows) * (1 - masks) + colours, masks
