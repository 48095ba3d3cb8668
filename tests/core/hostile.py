"""What hostile files try, and the guards that see whether they did it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Iterator[Path]:
    """A file that every hostile one here tries to make; it must not be there in the end."""
    path = tmp_path / "harm-was-done"
    monkeypatch.setenv("HARM", str(path))
    yield path
    assert not path.exists()


@pytest.fixture
def network(monkeypatch) -> Iterator[list[Any]]:
    """Every attempt to reach it is refused and, in the end, an error; the hub's own offline switch is off."""
    import huggingface_hub.constants

    tried: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        tried.append(arguments)
        raise OSError("a test reached for the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield tried
    assert not tried


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Half a GB more than the process has: what takes memory on a file's word fails. Mapped files do not count."""
    resource = pytest.importorskip("resource")
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("needs Linux to limit its memory")
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    data = int(pages.read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (data + 2**29, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, limits)


class Harm:
    """Unpickled, it makes the marker."""

    def __reduce__(self):
        return exec, ("import os, pathlib; pathlib.Path(os.environ['HARM']).touch()",)
