"""Random crops, cut so that they can be differentiated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def random_crops(
    images: Tensor, count: int, scale: float, flip: float, generators: Sequence[torch.Generator] = ()
) -> Tensor:
    """`count` random crops a picture: (B, 3, H, W) -> (B * count, 3, scale * H, scale * W).

    Places are uniform; each crop is mirrored with probability `flip`. Crops of one picture lie side by side. Without
    generators, one a picture, PyTorch's global one is drawn from.
    """
    height, width = (max(1, round(scale * side)) for side in images.shape[-2:])
    sources: Sequence[torch.Generator | None] = generators or [None] * len(images)
    places = []
    for source in sources:
        # drawn on the CPU, so that the same seed gives the same crops on every device and no iteration waits
        draws = torch.rand(count, 3, generator=source, dtype=torch.float64).tolist()
        down, along = images.shape[-2] - height + 1, images.shape[-1] - width + 1
        places.append([(int(y * down), int(x * along), mirror < flip) for y, x, mirror in draws])
    # a GPU waits for launches, of which slices need many; on a CPU slices of the picture are the faster copies
    return gather(images, places, height, width) if images.is_cuda else cut(images, places, height, width)


Place = tuple[int, int, bool]  # a crop's first row and column, and whether it is mirrored


def cut(images: Tensor, places: Sequence[Sequence[Place]], height: int, width: int) -> Tensor:
    """Crops one after the other; as many places for each picture."""
    crops = []
    for image, wanted in zip(images, places, strict=True):
        for y, x, mirror in wanted:
            crop = image[:, y : y + height, x : x + width]
            crops.append(crop.flip(-1) if mirror else crop)
    return torch.stack(crops)


def gather(images: Tensor, places: Sequence[Sequence[Place]], height: int, width: int) -> Tensor:
    """The same in one step for all pictures; no pixel occurs twice in a crop, so the gradient's order is fixed."""
    where = torch.tensor(places).to(images.device, non_blocking=True)  # (B, count, 3)
    y, x, mirror = where.unsqueeze(-1).unbind(2)  # (B, count, 1) each
    rows, along = (torch.arange(side, device=images.device) for side in (height, width))
    columns = x + torch.where(mirror > 0, width - 1 - along, along)
    pixels = ((y + rows).unsqueeze(-1) * images.shape[-1] + columns.unsqueeze(-2)).flatten(2)  # (B, count, h * w)
    count, channels = pixels.shape[1], images.shape[1]
    planes = images.flatten(2).unsqueeze(1).expand(-1, count, -1, -1)  # (B, count, 3, H * W)
    found = planes.gather(3, pixels.unsqueeze(2).expand(-1, -1, channels, -1))
    return found.unflatten(3, (height, width)).flatten(0, 1)
