"""Reading weight files: safetensors, or a pickled state dict that needs no code to run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
MAPPED = 64 * 2**20  # bytes of a safetensors file that are mapped at a time


def read_state_dict(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of one weight file on the CPU, floating-point ones as `dtype` (None: as stored).

    They are copies: what later happens to the file does not reach them. At no time is more of a safetensors file in
    memory than the copies and 64 MiB. Raises FileNotFoundError or ValueError for a file that cannot be used.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name} is no weight file: expected one of {', '.join(SUFFIXES)}")
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not a weight file: download the file itself, not the page about it")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return {
        key: value.to(dtype if dtype and value.is_floating_point() else value.dtype, copy=True)
        for key, value in tensors
    }


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Memory-mapped tensors, in the file's order; the mapping is renewed now and then, which frees what was read."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
        while keys:
            mapped = 0
            with safe_open(path, framework="pt") as file:
                while keys and mapped < MAPPED:
                    key = keys.pop(0)
                    tensor = file.get_tensor(key)
                    mapped += tensor.nbytes
                    yield key, tensor
            del tensor
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): download it again") from error


def _read_pickle(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than plain tensors, and loading it could run code: refused. Use a safetensors file, "
            f"or a state dict alone. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is damaged or no PyTorch weight file ({error}): download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: expected tensors by name")
    for key in list(state):
        yield key, state.pop(key)


def load_strictly(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Makes a state dict the parameters of a model; every key and shape must fit."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unexpected {key}" for key in found if key not in expected]
    problems += [
        f"{key} is {list(found[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(f"the weights of {source} do not fit the model: {shown}")
    model.load_state_dict(state, assign=True)
