"""Freed memory stays while a run goes on, and goes back when it ends."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

import tokenopt_core as to
from tokenopt_core import allocator

REAL = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")

MEASURED = """
import resource, runpy, sys
kept = runpy.run_path(sys.argv[1])["kept"]

def block(megabytes):
    return b"x" * (megabytes << 20)

def faults(wanted):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with kept(wanted):
        for _ in range(20):
            block(48)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

block(48)
print(faults(False), faults(True))
with kept():
    held = [block(4) for _ in range(100)]
    most = resident()
    del held
    still = resident()
print(most, still, resident())
"""


def measure(**environment: str) -> list[list[int]]:
    command = [sys.executable, "-c", MEASURED, allocator.__file__]
    done = subprocess.run(command, env={"PATH": "", **environment}, capture_output=True, text=True, check=True)
    return [[int(number) for number in line.split()] for line in done.stdout.splitlines()]


@REAL
def test_pages_are_taken_once_and_given_back_at_the_end() -> None:
    (before, inside), (most, kept, left) = measure()
    assert inside < before / 2
    assert kept > most - 50e6
    assert left < most - 300e6


@REAL
@pytest.mark.parametrize(
    "environment", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_who_sets_the_allocator_keeps_these_settings(environment) -> None:
    (before, inside), _ = measure(**environment)
    assert inside > before / 2


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a C library is told."""
    told: list[str] = []

    def mallopt(name: int, value: int) -> int:
        told.append("keep" if allocator.KEEPING[name] == value else "as usual")
        assert value in (allocator.KEEPING[name], allocator.USUAL[name])
        return 1

    library = SimpleNamespace(mallopt=mallopt, malloc_trim=lambda pad: told.append("trim"))
    monkeypatch.setattr(allocator, "_library", lambda: library)
    return told


ONCE = ["keep"] * 3 + ["as usual"] * 3 + ["trim"]


def test_contexts_within_and_beside_each_other_are_one(calls) -> None:
    with allocator.kept():
        with allocator.kept(), allocator.kept(False):
            assert calls == ONCE[:3]
        assert calls == ONCE[:3]
        inside = threading.Barrier(2)

        def other() -> None:
            with allocator.kept():
                inside.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
    thread.join()
    assert calls == ONCE


def test_a_failure_ends_it_too(calls) -> None:
    with pytest.raises(KeyError), allocator.kept():
        raise KeyError
    assert calls == ONCE


def test_older_versions_take_a_smaller_threshold(monkeypatch) -> None:
    told: list[tuple[int, int]] = []

    def mallopt(name: int, value: int) -> int:
        told.append((name, value))
        return int(name != allocator.MMAP_THRESHOLD or value <= allocator.LARGEST)

    library = SimpleNamespace(mallopt=mallopt, malloc_trim=lambda pad: 0)
    monkeypatch.setattr(allocator, "_library", lambda: library)
    with allocator.kept():
        assert dict(told) == {**allocator.KEEPING, allocator.MMAP_THRESHOLD: allocator.LARGEST}  # the last of each


def test_nothing_is_done_where_it_is_not_wanted_or_cannot_be(calls, monkeypatch) -> None:
    with allocator.kept(False):
        pass
    monkeypatch.setattr(allocator, "_library", lambda: None)
    with allocator.kept():
        pass
    assert not calls


@pytest.mark.parametrize("failing", [False, True])
def test_a_run_keeps_its_memory_to_its_end(calls, failing) -> None:
    tokenizer = to.load_tokenizer("mini")
    seen: list[list[str]] = []

    def callback(step: to.Step) -> None:
        seen.append(list(calls))
        if failing:
            raise KeyError

    features = torch.zeros(1, tokenizer.num_tokens, tokenizer.feature_dim)
    config = to.OptimizeConfig(iterations=2)
    try:
        to.optimize(tokenizer, features, lambda images: images.mean((1, 2, 3)), config, callback=callback)
    except KeyError:
        assert failing
    assert seen[0] == ONCE[:3]
    assert calls == ONCE
