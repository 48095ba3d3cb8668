"""Captions of the mini world, written by hand: which words say what of a scene."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from training.world import GROUNDS, LIGHTINGS, SUBJECTS, Scene

NAMES = {
    "apple": ("an apple", "a red apple"),
    "car": ("a car", "a blue car", "a jeep"),
    "fox": ("a fox",),
    "frog": ("a frog", "a green frog"),
    "gift": ("a gift", "a present"),
    "house": ("a house", "a home"),
    "lemon": ("a lemon", "a yellow lemon"),
    "mushroom": ("a mushroom", "a toadstool"),
    "panda": ("a panda", "a panda bear"),
    "penguin": ("a penguin",),
    "sunflower": ("a sunflower", "a flower"),
    "tree": ("a tree", "a pine tree", "a fir tree"),
}
PLACES = {
    "grass": ("on grass", "on the grass", "on a meadow", "in a green field"),
    "sand": ("on sand", "on the sand", "on the beach", "in the desert"),
    "snow": ("on snow", "in the snow", "on the snow", "in winter"),
    "water": ("on water", "on the water", "in the sea", "on a lake"),
}
TIMES = {
    "day": ("by day", "in daylight", "during the day", "in the sunshine", "in the daytime", "on a sunny day"),
    "sunset": ("at sunset", "at dusk", "in the evening", "in the evening light"),
    "night": ("at night", "in the dark", "under the moon", "by moonlight", "at nighttime", "under the stars"),
}
FRAMES = ("{}", "a photo of {}", "a picture of {}", "an image of {}")
SCENES = ("{}", "a scene {}", "a landscape {}")  # for captions without a subject


@dataclass(frozen=True)
class Caption:
    """What a caption names; None: it says nothing of that."""

    subject: str | None = None
    ground: str | None = None
    lighting: str | None = None

    def true_of(self, scene: Scene) -> bool:
        return all(
            named is None or named == shown
            for named, shown in (
                (self.subject, scene.subject),
                (self.ground, scene.ground),
                (self.lighting, scene.lighting),
            )
        )

    def text(self, rng: random.Random | None = None) -> str:
        """One way of saying it; the plainest without a random generator."""

        def pick(options: tuple[str, ...]) -> str:
            return rng.choice(options) if rng else options[0]

        parts = [pick(NAMES[self.subject])] if self.subject else []
        rest = [pick(PLACES[self.ground])] if self.ground else []
        if self.lighting:
            rest.insert(rng.randrange(len(rest) + 1) if rng else len(rest), pick(TIMES[self.lighting]))
        sentence = " ".join(parts + rest)
        if not rng:
            return sentence
        frame = rng.choice(FRAMES if self.subject else SCENES)
        return frame.format(sentence)


def all_captions() -> list[Caption]:
    """Every combination of named attributes, except naming nothing."""
    kinds = itertools.product((None, *SUBJECTS), (None, *GROUNDS), (None, *LIGHTINGS))
    return [caption for kind in kinds if (caption := Caption(*kind)) != Caption()]


def full_caption(scene: Scene) -> Caption:
    """The caption that names everything a caption can."""
    return Caption(scene.subject, scene.ground, scene.lighting)


def vocabulary() -> list[str]:
    """Every word that a caption can hold."""
    phrases = [*itertools.chain(*NAMES.values(), *PLACES.values(), *TIMES.values()), *FRAMES, *SCENES]
    return sorted({word for phrase in phrases for word in phrase.replace("{}", " ").split()})
