"""Going on with less when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from . import graphs

T = TypeVar("T")
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")  # of devices without an error class


class Thrift:
    """Repeats what ran out of memory in more and smaller pieces, and stays with what went through.

    make_room: called before each repetition, to free what others hold; PyTorch's own cache is emptied anyway.
    """

    def __init__(self, make_room: Callable[[], object] | None = None) -> None:
        self.pieces = 1  # 1: as fast as it goes; more: one after the other
        self.notes: list[str] = []  # what happened, in words
        self._make_room = make_room

    def __call__(self, attempt: Callable[[int], T], most: int, what: str) -> T:
        """`attempt(pieces)`, again with twice as many pieces after each shortage, `most` at the most.

        An attempt must leave nothing behind when it fails. Raises the last shortage, saying what was tried and what
        helps, when not even `most` pieces fit.
        """
        room_was_made = False
        while True:
            try:
                return attempt(self.pieces)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                kind, reason = type(error), _first_line(error)
            # outside the handler: the error's traceback holds all that the attempt had built
            if self.pieces >= most and room_was_made:
                cut = f" even in {self.pieces} pieces, one after the other" if self.pieces > 1 else ""
                raise kind(
                    f"there is not enough memory for {what}{cut} ({reason}). Take fewer pictures at once, half "
                    "precision or a smaller model, or close other programs that use this device"
                )
            self._free()
            room_was_made = True
            self._divide(most, what, reason)

    def _divide(self, most: int, what: str, reason: str) -> None:
        if self.pieces < most:
            self.pieces = min(most, 2 * self.pieces)
            remedy = f"it goes on in {self.pieces} pieces, slower"
        else:
            remedy = "it was repeated with what could be freed"
        self.notes.append(f"memory ran short in {what}: {remedy}")
        logging.getLogger(__name__).warning("TokenOpt: %s (%s)", self.notes[-1], reason)

    def over(self, function: Callable[[Tensor], Tensor], batch: Tensor, what: str) -> Tensor:
        """`function(batch)`, for a function that treats each entry of a batch on its own."""
        return self(lambda pieces: in_pieces(function, batch, pieces), len(batch), what)

    def _free(self) -> None:
        graphs.release()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if self._make_room:
            self._make_room()


def in_pieces(function: Callable[[Tensor], Tensor], batch: Tensor, pieces: int) -> Tensor:
    """`function(batch)`, computed from so many parts of the batch, or from single entries if it has fewer."""
    return function(batch) if pieces == 1 else torch.cat([function(part) for part in batch.chunk(pieces)])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a shortage of memory, on whatever device."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
