"""Which model this is: by what it computes with, not by what it is called alone."""

from __future__ import annotations

import hashlib

import torch

from .clip import Clip

CLOSE = 0.02  # relative difference of weights that half precision makes


def fingerprint(clip: Clip) -> str:
    """Changes with a model's name, architecture, picture size, normalisation and every bit of its weights."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((clip.name, clip.image_size, clip.mean.tolist(), clip.std.tolist(), clip.model)).encode())
    for name, tensor in sorted(clip.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def same_weights(first: Clip, second: Clip) -> bool:
    """Whether two models are one and the same, be it in different precision."""
    if first is second:
        return True
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    if {key: value.shape for key, value in ours.items()} != {key: value.shape for key, value in theirs.items()}:
        return False
    return all(_close(value.detach().cpu(), theirs[key].detach().cpu()) for key, value in ours.items())


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    difference = (first.float() - second.float()).norm()
    return bool(difference <= CLOSE * max(first.float().norm().item(), second.float().norm().item()))
