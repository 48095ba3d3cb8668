"""Reading weight files: safetensors, or a pickled state dict that needs no code to run."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of one weight file, on the CPU; ValueError or FileNotFoundError if it cannot be read."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name} is no weight file: expected one of {', '.join(SUFFIXES)}")
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not a weight file: download the file itself, not the page about it")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): download it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than plain tensors, and loading it could run code: refused. Use a safetensors file, "
            f"or a state dict alone. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged or no PyTorch weight file ({error}): download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: expected tensors by name")
    return state


def load_strictly(model: nn.Module, state: dict[str, Tensor], source: str, dtype: torch.dtype) -> None:
    """Puts a state dict into a model, floating-point entries as `dtype`; every key and shape must fit."""
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
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    model.load_state_dict(cast, assign=True)
