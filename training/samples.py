"""Renders the sample pictures that ship with the pack: `python -m training.samples`."""

from __future__ import annotations

from torchvision.utils import save_image

from tokenopt_core.loading import MINI
from training.tokenizer import CONFIG
from training.world import Scene, World

SAMPLES = {
    "apple on sand by day": Scene("apple", "sand", "day", 0.58, 0.46, "right"),
    "car on grass by day": Scene("car", "grass", "day", 0.70, 0.50, "left"),
    "fox on grass by day": Scene("fox", "grass", "day", 0.58, 0.54, "left"),
    "house on snow by day": Scene("house", "snow", "day", 0.70, 0.46, "right"),
    "panda on water at sunset": Scene("panda", "water", "sunset", 0.58, 0.42, "left"),
    "penguin on snow at night": Scene("penguin", "snow", "night", 0.70, 0.50, "right"),
}


def main() -> None:
    folder = MINI / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    images, masks = World(CONFIG.image_size).render(list(SAMPLES.values()))
    for name, image, mask in zip(SAMPLES, images, masks, strict=True):
        save_image(image, folder / f"{name}.png")
        save_image(mask, folder / f"{name}.mask.png")


if __name__ == "__main__":
    main()
