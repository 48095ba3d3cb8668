"""Renders the sample pictures that ship with the pack: `python -m training.samples`."""

from __future__ import annotations

from pathlib import Path

from torchvision.utils import save_image

from tokenopt_core.loading import MINI
from training.world import Scene, World

SAMPLES = {  # whole subjects: a large one at the side is cut unless it is narrow
    "apple on sand by day": Scene("apple", "sand", "day"),
    "car on grass by day": Scene("car", "grass", "day"),
    "elephant on grass at sunset": Scene("elephant", "grass", "sunset"),
    "fox on grass by day": Scene("fox", "grass", "day"),
    "house on snow by day": Scene("house", "snow", "day"),
    "panda on water at sunset": Scene("panda", "water", "sunset"),
    "penguin on snow at night": Scene("penguin", "snow", "night", place="left"),
    "robot on sand in fog": Scene("robot", "sand", "fog", "small", "right"),
}


def write(folder: Path, world: World) -> None:
    """NAME.png and NAME.mask.png, the subject in white, of each sample; other pictures in the folder are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    images, masks = world.render(list(SAMPLES.values()))
    for name, image, mask in zip(SAMPLES, images, masks, strict=True):
        save_image(image, folder / f"{name}.png")
        save_image(mask, folder / f"{name}.mask.png")
    for path in folder.glob("*.png"):
        if path.name.removesuffix(".png").removesuffix(".mask") not in SAMPLES:
            path.unlink()


def main() -> None:
    write(MINI / "samples", World())


if __name__ == "__main__":
    main()
