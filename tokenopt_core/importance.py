"""Which token positions tell classes of pictures apart (paper, Section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .clip import Clip
from .prompts import LONGEST_PROMPT

MOST_PARTITIONS, MOST_CLASSES, LONGEST_NAME = 100, 100, 60
TINY = 2  # pictures: the mean of fewer is that one picture

_NAMED = re.compile(r"([^|:]+):(?!\d)(.*)", re.DOTALL)


def token_importance(features: Tensor, labels: Tensor) -> Tensor:
    """Variance between the classes' means, for each token position: (N,) (paper, Eq. 1).

    features: quantized tokens (M, N, D) of M pictures, as `tokenizer.quantize(tokenizer.encode(images))` gives them.
    labels: the class of each picture, whole numbers (M,).

    The sample variance (one less than the number of classes in the denominator) of the class means, averaged over D;
    computed in float64. Each class that occurs counts the same, however many pictures it has. Raises ValueError for
    shapes that do not fit, and for fewer than two classes.
    """
    _check(features, labels)
    present, numbers = labels.unique(return_inverse=True)
    statistics = ClassMeans(len(present))
    statistics.add(features, numbers)
    return statistics.importance().to(features.dtype)


class ClassMeans:
    """Counts and means of the tokens of each class, from any number of pictures in the memory of a few.

    Welford's update, a batch at a time: what is added is the mean distance from the mean so far, so that nothing grows
    and no digits are lost however many pictures come.
    """

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.int64)
        self.means = torch.zeros(0)  # (classes, N, D) in float64, once something was added

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Takes in tokens (M, N, D) with their labels (M,), which are numbers from 0 to `classes` - 1."""
        _check(features, labels)
        values, labels, classes = features.detach().cpu().double(), labels.cpu().long(), len(self.counts)
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(f"labels must be from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
        if not self.means.numel():
            self.means = torch.zeros(classes, *values.shape[1:], dtype=torch.float64)
        if values.shape[1:] != self.means.shape[1:]:
            raise ValueError(
                f"tokens of shape {tuple(values.shape[1:])} came after tokens of shape {tuple(self.means.shape[1:])}: "
                "they are of different tokenizers"
            )
        self.counts += torch.bincount(labels, minlength=classes)
        distances = torch.zeros_like(self.means).index_add_(0, labels, values - self.means[labels])
        self.means += distances / self.counts.clamp(min=1)[:, None, None]

    def importance(self) -> Tensor:
        """See `token_importance`; of what was added so far, in float64. Classes without a picture do not count."""
        present = self.counts > 0
        if int(present.sum()) < 2:
            raise ValueError(
                f"all pictures are of {int(present.sum())} class: at least two classes with pictures are needed to "
                "tell them apart"
            )
        return self.means[present].var(0, unbiased=True).mean(1)


def _check(features: Tensor, labels: Tensor) -> None:
    if features.ndim != 3 or not features.numel():
        raise ValueError(f"expected tokens of shape (pictures, positions, channels), got {tuple(features.shape)}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"expected a label for each of the {len(features)} pictures, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")


@dataclass(frozen=True)
class Partition:
    """A way to divide pictures into classes that prompts describe."""

    name: str
    classes: tuple[str, ...]


def parse_partitions(text: str) -> list[Partition]:
    """Partitions from text, one a line: "lighting: daytime scene | nighttime scene"; the name may be left out.

    A colon before a digit ("at 10:30") belongs to the prompt. Raises ValueError for no partition, one of a single
    class, a class without text or named twice, and two partitions of one name.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("no partition is given: write classes separated by |, such as daytime scene | nighttime scene")
    if len(lines) > MOST_PARTITIONS:
        raise ValueError(f"these are {len(lines)} partitions, one a line: expected at most {MOST_PARTITIONS}")
    partitions = [_parse(line) for line in lines]
    names = [partition.name for partition in partitions]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two partitions are called {twice!r}: give each a name of its own")
    return partitions


def _parse(line: str) -> Partition:
    named = _NAMED.fullmatch(line)
    name, prompts = (named[1].strip(), named[2]) if named else ("", line)
    classes = tuple(part.strip() for part in prompts.split("|"))
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a partition's name has {len(name)} characters: expected at most {LONGEST_NAME}")
    where = f"the partition {line[:LONGEST_NAME]!r}"
    if not all(classes):
        raise ValueError(f"{where} has a class without text: write a prompt on both sides of each |")
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise ValueError(
            f"{where} has {len(classes)} class{'es' * (len(classes) > 1)}: expected 2 to {MOST_CLASSES}, separated by |"
        )
    if len(set(classes)) < len(classes):
        raise ValueError(f"{where} names the same class twice")
    if max(map(len, classes)) > LONGEST_PROMPT:
        raise ValueError(f"a class has more than {LONGEST_PROMPT} characters: describe it in a sentence")
    return Partition(name or " / ".join(classes)[:LONGEST_NAME], classes)


@dataclass(frozen=True)
class Finding:
    """What a survey found of one partition.

    counts: pictures of each class. importance: (N,) in float64, None if fewer than two classes have pictures.
    """

    partition: Partition
    counts: tuple[int, ...]
    importance: Tensor | None

    @property
    def notes(self) -> list[str]:
        """What weakens it, in words."""
        classes = list(zip(self.partition.classes, self.counts, strict=True))
        if self.importance is None:
            only = next((name for name, count in classes if count), None)
            total = sum(self.counts)
            what = f"all {total} pictures are" if total > 1 else "the only picture is"
            return [f"{what} of the class {only!r}: there is nothing to compare"]
        return [
            f"the class {name!r} has {'no picture and is left out' if not count else 'only one picture'}"
            for name, count in classes
            if count < TINY
        ]

    def top(self, count: int) -> list[int]:
        """The positions of the greatest importance, the greatest first."""
        return [] if self.importance is None else self.importance.argsort(descending=True, stable=True)[:count].tolist()


class Survey:
    """Several partitions over one stream of pictures; CLIP tells which class of each partition a picture is in."""

    def __init__(self, clip: Clip, partitions: Sequence[Partition]) -> None:
        self.partitions = tuple(partitions)
        self._texts = [clip.embed_text(partition.classes) for partition in self.partitions]
        self._means = [ClassMeans(len(partition.classes)) for partition in self.partitions]

    def add(self, tokens: Tensor, embedded: Tensor) -> None:
        """Takes in pictures: their quantized tokens (M, N, D) and their CLIP embeddings (M, E)."""
        for texts, means in zip(self._texts, self._means, strict=True):
            means.add(tokens, classify(embedded, texts))

    def findings(self) -> list[Finding]:
        """One a partition, of what was added so far; ValueError if not a single partition can be judged."""
        found = [
            Finding(partition, tuple(means.counts.tolist()), _importance(means))
            for partition, means in zip(self.partitions, self._means, strict=True)
        ]
        if not any(sum(finding.counts) for finding in found):
            raise ValueError("there is not a single picture to look at")
        if all(finding.importance is None for finding in found):
            note = found[0].notes[0]
            raise ValueError(f"{note}. Give pictures of at least two classes, or prompts that divide them otherwise")
        return found


def _importance(means: ClassMeans) -> Tensor | None:
    return means.importance() if int((means.counts > 0).sum()) >= 2 else None


def classify(embedded: Tensor, texts: Tensor) -> Tensor:
    """The most similar text of (C, E) for each picture of (M, E): labels (M,)."""
    return (embedded @ texts.to(embedded).T).argmax(1)
