"""What reaches a node is what its schema says.

ComfyUI checks what a prompt writes into a widget, and the type of a link. It checks neither the range of what comes
over a link, nor that a socket of the pack's own types is connected instead of filled in, nor the type of a choice.
"""

from __future__ import annotations

import functools
import inspect
import math
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from comfy_api.latest import io

from ..tokenopt_core import Clip, NoiseSchedule, Tokenizer
from ..tokenopt_core.canvas import Placement
from .sockets import LossTerms

Execute = TypeVar("Execute", bound=Callable[..., Any])
LONGEST_CHOICE = 1000
LONGEST = 60  # characters of a wrong value that a message repeats


def checked(execute: Execute) -> Execute:
    """An `execute` whose arguments are held against its node's schema first; ValueError names what is wrong.

    An optional input that is filled in with null counts as left open.
    """
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def check_and_execute(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(cls, *args, **kwargs).arguments
        for wanted in cls.define_schema().inputs:
            value = given.get(wanted.id)
            if value is None and wanted.optional:
                given.pop(wanted.id, None)
            elif wanted.id in given:
                _check(wanted, value)
        try:
            return execute(**given)
        except Exception as error:
            if is_text(traceback.format_exc()):
                raise
            # a file's name, or what stands in it: without what led here, which ComfyUI would print, too
            raise ValueError(str(error).encode("utf-8", "backslashreplace").decode()) from None

    return check_and_execute  # type: ignore[return-value]


def shown(value: object) -> str:
    """A value in a message: its kind and its beginning."""
    if value is None:
        return "nothing"
    if isinstance(value, (bool, int, float)):
        return str(value)[:LONGEST]
    if isinstance(value, str):
        text = "".join(c if c.isprintable() else "?" for c in value[: LONGEST + 1])
        return f"the text {text[:LONGEST]!r}" + (" ..." if len(value) > LONGEST else "")
    kinds = {dict: "a dictionary", list: "a list", tuple: "a list", torch.Tensor: "a picture, a mask or features"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "the output of another node")


def _check(wanted: Any, value: Any) -> None:
    if isinstance(wanted, io.Int.Input):
        if not isinstance(value, int):
            raise ValueError(f"{_name(wanted)} must be a whole number{_range(wanted)}, got {shown(value)}")
        _check_range(wanted, value)
    elif isinstance(wanted, io.Float.Input):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"the {_name(wanted)} must be a finite number{_range(wanted)}, got {shown(value)}")
        _check_range(wanted, value)
    elif isinstance(wanted, io.Boolean.Input):
        if not isinstance(value, (bool, int)):
            raise ValueError(f"{_name(wanted)} must be on or off, got {shown(value)}")
    elif isinstance(wanted, (io.String.Input, io.Combo.Input)):
        choice = isinstance(wanted, io.Combo.Input)  # which of them there are, the node knows best
        if not isinstance(value, str) or (choice and len(value) > LONGEST_CHOICE):
            what = "one of the choices in its list" if choice else "a text"
            raise ValueError(f"{_name(wanted)} must be {what}, got {shown(value)}")
        if not is_text(value):
            raise ValueError(f"{_name(wanted)} holds half of a character, which is no text: {shown(value)}")
    else:
        what, fits = SOCKETS[wanted.get_io_type()]
        if not fits(value):
            raise ValueError(f"{_name(wanted)} takes {what}, got {shown(value)}: connect it to such an output")


def _check_range(wanted: Any, value: float) -> None:
    for limit, beyond, words in (
        (wanted.min, value < wanted.min, "at least"),
        (wanted.max, value > wanted.max, "at most"),
    ):
        if beyond:
            raise ValueError(f"{_name(wanted)} must be {words} {limit:g}, got {shown(value)}")


def _range(wanted: Any) -> str:
    return "" if wanted.min is None or wanted.max is None else f" from {wanted.min} to {wanted.max}"


def _name(wanted: Any) -> str:
    return str(wanted.display_name or wanted.id).replace("_", " ")


def is_text(value: str) -> bool:
    """Whether it can be printed: what cannot ends, in ComfyUI's log, the thread that runs prompts."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _is_history(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_tensor, value.values()))


def _holds(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(getattr(value, "model", None), kind)


# by socket type: how a user knows it, and whether a value is one
SOCKETS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "IMAGE": ("a picture", _is_tensor),
    "MASK": ("a mask", _is_tensor),
    "TITOK": ("the tokenizer of TiTok Load", _holds(Tokenizer)),
    "OPENCLIP": ("the model of OpenCLIP Load", _holds(Clip)),
    "TITOK_FEATURES": ("features, such as those of Encode to Features", _is_tensor),
    "TOKEN_LOSS": ("a loss, such as that of CLIP Loss", lambda value: isinstance(value, LossTerms)),
    "TOKEN_REGULARIZER": ("what Regularizer gives", lambda value: isinstance(value, tuple)),
    "TOKEN_NOISE": ("what Noise Schedule gives", lambda value: isinstance(value, NoiseSchedule)),
    "TOKEN_RESET": ("what Token Reset gives", lambda value: callable(getattr(value, "due", None))),
    "TITOK_PLACEMENT": ("the PLACEMENT of Fit to Tokenizer", lambda value: isinstance(value, Placement)),
    "TOKEN_HISTORY": ("the HISTORY of Optimize Tokens", _is_history),
}
