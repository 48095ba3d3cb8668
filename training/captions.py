"""Captions of the mini world, written by hand: which words say what of a scene."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from training.world import GROUNDS, LIGHTINGS, SUBJECTS, Scene

NAMES = {
    "apple": ("apple", "red apple"),
    "car": ("car", "blue car", "jeep"),
    "cupcake": ("cupcake", "pink cupcake", "cake"),
    "elephant": ("elephant", "grey elephant"),
    "fox": ("fox",),
    "frog": ("frog", "green frog"),
    "gift": ("gift", "present"),
    "grapes": ("bunch of grapes", "bunch of purple grapes"),
    "house": ("house", "home"),
    "lemon": ("lemon", "yellow lemon"),
    "mushroom": ("mushroom", "toadstool"),
    "panda": ("panda", "panda bear"),
    "penguin": ("penguin",),
    "robot": ("robot",),
    "sunflower": ("sunflower", "flower"),
    "tree": ("tree", "pine tree", "fir tree"),
}
GROUND = {
    "grass": ("on grass", "on the grass", "on a meadow", "in a green field"),
    "sand": ("on sand", "on the sand", "on the beach", "in the desert"),
    "snow": ("on snow", "in the snow", "on the snow", "in winter"),
    "water": ("on water", "on the water", "in the sea", "on a lake"),
}
LIGHTING = {
    "day": ("by day", "in daylight", "during the day", "in the sunshine", "in the daytime", "on a sunny day"),
    "sunset": ("at sunset", "at dusk", "in the evening", "in the evening light"),
    "night": ("at night", "in the dark", "under the moon", "by moonlight", "at nighttime", "under the stars"),
    "fog": ("in fog", "in the fog", "in mist", "on a foggy day"),
}
SIZE = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE = {
    "left": ("on the left", "to the left"),
    "middle": ("in the middle", "in the centre", "in the center"),
    "right": ("on the right", "to the right"),
}
FOCUS = {
    "sharp": ("in sharp focus", "sharp everywhere"),
    "background": ("with a blurred background", "in front of a blurred background"),
    "soft": ("out of focus", "in soft focus", "all blurred"),
}
WORDS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "subject": NAMES,
    "ground": GROUND,
    "lighting": LIGHTING,
    "size": SIZE,
    "place": PLACE,
    "focus": FOCUS,
}
SPOKEN = ("subject", "ground", "lighting", "size")  # what the CLIP is told of; place and focus it did not learn to see
FRAMES = ("{}", "a photo of {}", "a picture of {}", "an image of {}")
SCENES = ("{}", "a scene {}", "a landscape {}")  # for captions without a subject
THING = "thing"  # what a caption calls the subject if it tells its size alone


@dataclass(frozen=True)
class Caption:
    """What a caption names; None: it says nothing of that."""

    subject: str | None = None
    ground: str | None = None
    lighting: str | None = None
    size: str | None = None
    place: str | None = None
    focus: str | None = None

    def named(self) -> dict[str, str]:
        """The attributes it names."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def true_of(self, scene: Scene) -> bool:
        return all(getattr(scene, name) == value for name, value in self.named().items())

    def text(self, rng: random.Random | None = None) -> str:
        """One way of saying it; the plainest without a random generator."""

        def pick(attribute: str) -> list[str]:
            value = getattr(self, attribute)
            options = WORDS[attribute][value] if value else ()
            return [rng.choice(options) if rng else options[0]] if options else []

        size, name = pick("size"), pick("subject")
        thing = " ".join(size + (name or [THING] * bool(size)))
        first = [f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"] if thing else []
        rest = [phrase for attribute in ("ground", "lighting", "place", "focus") for phrase in pick(attribute)]
        if rng:
            rng.shuffle(rest)
        sentence = " ".join(first + rest)
        return rng.choice(FRAMES if first else SCENES).format(sentence) if rng else sentence


def all_captions() -> list[Caption]:
    """Every combination of subject, ground and lighting, named or not, except naming nothing."""
    kinds = itertools.product((None, *SUBJECTS), (None, *GROUNDS), (None, *LIGHTINGS))
    return [caption for kind in kinds if (caption := Caption(*kind)) != Caption()]


def full_caption(scene: Scene) -> Caption:
    """The caption that names everything the CLIP is told of."""
    return Caption(**{name: getattr(scene, name) for name in SPOKEN})


def main_caption(scene: Scene) -> Caption:
    """The caption that names subject, ground and lighting."""
    return Caption(scene.subject, scene.ground, scene.lighting)


def random_caption(scene: Scene, rng: random.Random, share: float = 0.5) -> Caption:
    """A true caption that names each attribute with this probability, and at least one."""
    names = [name for name in SPOKEN if rng.random() < share] or [rng.choice(SPOKEN)]
    return Caption(**{name: getattr(scene, name) for name in names})


def vocabulary() -> list[str]:
    """Every word that the CLIP is told."""
    phrases = [phrase for kinds in map(WORDS.__getitem__, SPOKEN) for phrase in itertools.chain(*kinds.values())]
    words = (word for phrase in [*phrases, *FRAMES, *SCENES, THING, "an"] for word in phrase.replace("{}", " ").split())
    return sorted(set(words))
