"""Memory that a run on a CPU frees stays the process's until its end, where glibc would return it at once.

Large blocks go back to the system as soon as they are freed, and every iteration takes them again, page by page: the
system clears each page anew. While `kept` is in force they stay; after it, what is free is returned.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # names of settings in glibc's malloc.h
LARGEST = 32 << 20  # that older versions accept for the last of them
KEEPING = {MMAP_THRESHOLD: 2**31 - 1, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 1 << 28}
# where glibc's own adjustment ends once a program has freed a large block, as any that uses PyTorch has
USUAL = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: 2 * LARGEST, TOP_PAD: 128 << 10}

_lock, _runs = threading.Lock(), 0


@contextmanager
def kept(wanted: bool = True) -> Iterator[None]:
    """Keeps freed memory for as long as one such context is open, in whichever thread.

    Does nothing with another C library, nor where the environment sets glibc's allocator itself.
    """
    if not (wanted and _library()):
        yield
        return
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _runs
    with _lock:
        before, _runs = _runs, _runs + change
        if not (before and _runs):
            for name, value in (KEEPING if _runs else USUAL).items():
                if not _library().mallopt(name, value) and name == MMAP_THRESHOLD:
                    _library().mallopt(name, LARGEST)
        if not _runs:
            _library().malloc_trim(0)


@cache
def _library() -> Any:
    """glibc, or None where it is not there or set by the environment."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or chosen:
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
