"""Reading weight files and the configs beside them, which may come from anywhere.

Weights are safetensors, or a pickled state dict that needs no code to run. What a file says of its sizes is checked
before memory is taken for it.
"""

from __future__ import annotations

import json
import math
import pickle
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
MAPPED = 64 * 2**20  # bytes of a safetensors file that are mapped at a time
LONGEST_CONFIG = 2**20  # bytes

Shapes = dict[str, tuple[int, ...]]

# what a pickled state dict of plain tensors names; PyTorch itself lets more pass, a bytearray of any length for one
_PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|torch\.nn\.parameter Parameter"
    r"|torch(\.storage)? \w+Storage|torch (Size|bool|b?float\w+|u?int\d+|complex\d+)"
)
_LEGACY_PICKLES = 5  # of the format before PyTorch 1.6: magic, version, system, the state dict, its storages' names


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of a model: an object with finite numbers, of at most 1 MiB; ValueError for anything else."""
    if path.stat().st_size > LONGEST_CONFIG:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: a config has at most {LONGEST_CONFIG:,}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON that can be read ({str(error)[:200]})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, such as {{...}}")
    return config


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError(f"{number[:20]} is no finite number")
    return float(number)


def read_shapes(path: Path) -> Shapes:
    """The shapes of a weight file's tensors by name, without reading the tensors."""
    _check_file(path)
    if path.suffix != ".safetensors":
        return {key: tuple(tensor.shape) for key, tensor in _read_pickle(path)}
    try:
        with safe_open(path, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from error


def read_state_dict(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of one weight file on the CPU, floating-point ones as `dtype` (None: as stored).

    They are copies: what later happens to the file does not reach them. At no time is more of a safetensors file in
    memory than the copies and 64 MiB. Raises FileNotFoundError or ValueError for a file that cannot be used.
    """
    _check_file(path)
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return {
        key: value.detach().to(dtype if dtype and value.is_floating_point() else value.dtype, copy=True)
        for key, value in tensors
    }


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name} is no weight file: expected one of {', '.join(SUFFIXES)}")
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not a weight file: download the file itself, not the page about it")


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
        raise _damaged(path, error) from error


def _read_pickle(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        archived = _check_pickle(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=archived)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than plain tensors, and loading it could run code: refused. Use a safetensors file, "
            f"or a state dict alone. ({(str(error) or 'no reason given').splitlines()[0][:200]})"
        ) from error
    except Exception as error:  # whatever a damaged or forged file leads to
        raise _damaged(path, error) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # a training run's checkpoint
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} holds no state dict: expected tensors by name")
    _check_tensors(path, state)
    for key in list(state):
        yield key, state.pop(key)


def _check_pickle(path: Path) -> bool:
    """Refuses what is no plain state dict, before anything of it is loaded; whether it is an archive, not legacy."""
    with path.open("rb") as file:
        archived = file.read(4) == b"PK\x03\x04"  # as PyTorch decides it
        file.seek(0)
        if not archived:
            if _is_tar(file):  # the oldest format: PyTorch before 2.6 unpacks it to wherever it says
                raise pickle.UnpicklingError("it is a tar archive")
            for _ in range(_LEGACY_PICKLES):
                _check_names(file)
            return False
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError(f"it would unpack to {size:,} bytes, and weight files are not compressed")
            for entry in entries:
                if entry.filename.lower().endswith(".pkl"):
                    with archive.open(entry) as stream:
                        _check_names(stream)
    return True


def _is_tar(file: BinaryIO) -> bool:
    try:
        tarfile.open(fileobj=file, mode="r:").close()
    except tarfile.TarError:
        return False
    finally:
        file.seek(0)
    return True


def _check_names(stream: Any) -> None:
    """Raises UnpicklingError if a pickle names anything but the parts of plain tensors."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError(f"it uses {opcode.name}")
        if opcode.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"it names {str(argument).replace(' ', '.')}")


def _check_tensors(path: Path, state: Mapping[str, object]) -> None:
    """ValueError for what is no tensor of numbers that lie in the file, each where the next one begins."""
    size, total = path.stat().st_size, 0
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path} holds no state dict: expected tensors by name")
        plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path}: {key[:100]} is no plain tensor, or larger than the file: refused")
        total += value.nbytes
    if total > 2 * size:  # tied weights may lie in the file once and be named twice
        raise ValueError(f"{path} has {size:,} bytes and speaks of tensors of {total:,} bytes: refused")


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ValueError(f"{path} is damaged or no {_format(path)} file ({reason}): download it again")


def _format(path: Path) -> str:
    return "safetensors" if path.suffix == ".safetensors" else "PyTorch weight"


def check_shapes(model: nn.Module, found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """ValueError unless these are the shapes of the model's parameters, every one of them and no more."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unexpected {key[:200]}" for key in found if key not in expected]
    problems += [
        f"{key} is {list(found[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(f"the weights of {source} do not fit the model: {shown}")


def load_strictly(model: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Makes the tensors of a file the parameters of a model; every key and shape must fit, which is seen to first."""
    check_shapes(model, read_shapes(path), str(path))
    state = read_state_dict(path, dtype)
    check_shapes(model, {key: tuple(value.shape) for key, value in state.items()}, str(path))
    for key, value in model.state_dict().items():
        if value.is_floating_point() != state[key].is_floating_point():
            raise ValueError(f"the weights of {path} do not fit the model: {key} holds {state[key].dtype} numbers")
    model.load_state_dict(state, assign=True)
