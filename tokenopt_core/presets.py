"""Attributes by name: which positions of a tokenizer carry them, measured and kept beside its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .weights import read_config

FILE = "presets.json"  # beside a tokenizer's config.json; written by `python benchmarks/presets.py`
LONGEST_NAME = 60
_NAME = re.compile(r"(?=.*[^\W\d_])[^,;\s]([^,;]*[^,;\s])?")  # with a letter: nothing that reads as positions

Presets = Mapping[str, tuple[int, ...]]  # attribute -> its positions


def read_presets(path: Path, num_tokens: int) -> Presets:
    """The attributes in a file such as {"attributes": {"lighting": {"positions": [0]}}}; none if there is no file.

    What else stands there, how it was measured for instance, is for people. Raises ValueError for a file that names
    positions that the tokenizer does not have, or attributes that nobody could write into a list of positions.
    """
    if not path.is_file():
        return {}
    attributes = read_config(path).get("attributes")
    if not isinstance(attributes, dict):
        raise ValueError(f'{path}: expected {{"attributes": {{"lighting": {{"positions": [0]}}}}}}')
    found: dict[str, tuple[int, ...]] = {}
    for name, entry in attributes.items():
        positions = entry.get("positions") if isinstance(entry, dict) else None
        if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME or not name.isprintable() or spelled(name) in found:
            raise ValueError(f"{path}: {name[:LONGEST_NAME]!r} cannot be the name of an attribute")
        if not isinstance(positions, list) or not positions or not all(_fits(p, num_tokens) for p in positions):
            raise ValueError(f"{path}: expected positions of 0 to {num_tokens - 1} for {name!r}, got {positions!r:.60}")
        found[spelled(name)] = tuple(sorted(set(positions)))
    return found


def _fits(position: object, num_tokens: int) -> bool:
    return type(position) is int and 0 <= position < num_tokens


def spelled(name: str) -> str:
    """An attribute's name as it is compared: case and the number of spaces make no difference."""
    return " ".join(name.lower().split())
