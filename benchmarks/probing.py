"""Linear probes: what can be read off tokens by the simplest means (paper, Appendix B.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenopt_core import Tokenizer


@dataclass(frozen=True)
class Labelled:
    """Pictures' tokens with their classes.

    tokens: code numbers (M, N), or features (M, N, D). labels: whole numbers (M,) from 0 on.
    """

    tokens: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.tokens.ndim not in (2, 3) or not len(self.tokens) or self.labels.shape != self.tokens.shape[:1]:
            raise ValueError(
                "expected code numbers (M, N) or features (M, N, D) and a label for each, got "
                f"{tuple(self.tokens.shape)} and {tuple(self.labels.shape)}"
            )


@dataclass(frozen=True)
class ProbeConfig:
    """How a linear head is trained.

    dropout: how often a token position is hidden in training. width: numbers per code in the learned codebook.
    """

    epochs: int = 10
    batch: int = 128
    learning_rate: float = 0.01
    dropout: float = 0.2
    width: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """One round of iterative masking: what the remaining positions give, and which of them is masked next."""

    remaining: tuple[int, ...]
    accuracy: float
    removed: int
    accuracy_without: float  # of the same head, with that position masked, too


def table_accuracy(train: Labelled, test: Labelled) -> Tensor:
    """How well each position alone tells the class: accuracy on `test`, (N,), by a table from code to class.

    The table is what training its logits would end at: the class most often seen with a code at that position; for a
    code that never was there, the most frequent class.
    """
    if train.tokens.ndim != 2 or test.tokens.ndim != 2:
        raise ValueError("a table needs code numbers (M, N), not features")
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    codes = int(max(train.tokens.max(), test.tokens.max())) + 1
    usual = int(train.labels.bincount().argmax())
    found = []
    for column, tried in zip(train.tokens.T, test.tokens.T, strict=True):
        counts = (column * classes + train.labels).bincount(minlength=codes * classes).view(codes, classes)
        table = counts.argmax(1).masked_fill(counts.sum(1) == 0, usual)
        found.append((table[tried] == test.labels).double().mean())
    return torch.stack(found)


def iterative_masking(
    train: Labelled,
    test: Labelled,
    config: ProbeConfig = ProbeConfig(),
    callback: Callable[[Round], object] | None = None,
) -> list[Round]:
    """Which positions a linear head can do without, one after the other; the last are the ones that matter.

    The paper's five steps: a linear head on all features side by side (of code numbers, on a codebook learned with it);
    trained with random positions hidden; evaluated with nothing hidden; the position whose masking costs the least
    accuracy is masked for good; and again from the start, until all are masked.
    """
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    if train.tokens.ndim == 3:  # every channel alike, whatever its scale
        mean, spread = train.tokens.mean(0), train.tokens.std(0).clamp(min=1e-6)
        train, test = (Labelled((part.tokens - mean) / spread, part.labels) for part in (train, test))
    remaining = list(range(train.tokens.shape[1]))
    rounds: list[Round] = []
    while remaining:
        head = _train(train, classes, remaining, config, int(max(train.tokens.max(), test.tokens.max())) + 1)
        whole = _accuracy(head, test, remaining)
        without = {p: _accuracy(head, test, [other for other in remaining if other != p]) for p in remaining}
        least = max(remaining, key=lambda position: without[position])
        rounds.append(Round(tuple(remaining), whole, least, without[least]))
        remaining.remove(least)
        if callback:
            callback(rounds[-1])
    return rounds


class _Head(nn.Module):
    """Tokens of the positions that are shown -> class scores."""

    def __init__(self, tokens: Tensor, classes: int, codes: int, config: ProbeConfig) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codes, config.width) if tokens.ndim == 2 else None
        width = config.width if tokens.ndim == 2 else tokens.shape[2]
        self.linear = nn.Linear(tokens.shape[1] * width, classes)

    def forward(self, tokens: Tensor, shown: Tensor) -> Tensor:  # (B, N[, D]), (B or 1, N) -> (B, classes)
        features = tokens if self.codebook is None else self.codebook(tokens)
        return self.linear((features * shown[..., None]).flatten(1))


def _shown(positions: list[int], count: int) -> Tensor:
    return torch.zeros(1, count).index_fill_(1, torch.tensor(positions, dtype=torch.int64), 1.0)


def _train(train: Labelled, classes: int, positions: list[int], config: ProbeConfig, codes: int) -> _Head:
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(config.seed)
        head = _Head(train.tokens, classes, codes, config)
        adam = torch.optim.Adam(head.parameters(), config.learning_rate)
        shown = _shown(positions, train.tokens.shape[1])
        for _ in range(config.epochs):
            for part in torch.randperm(len(train.labels), generator=generator).split(config.batch):
                kept = torch.rand(len(part), shown.shape[1], generator=generator) >= config.dropout
                loss = F.cross_entropy(head(train.tokens[part], shown * kept), train.labels[part])
                adam.zero_grad()
                loss.backward()
                adam.step()
    return head.eval()


@torch.no_grad()
def _accuracy(head: _Head, test: Labelled, positions: list[int]) -> float:
    scores = head(test.tokens, _shown(positions, test.tokens.shape[1]))
    return float((scores.argmax(1) == test.labels).double().mean())


@torch.no_grad()
def transformer_features(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """What the encoder's last layer holds of each token, (B, N, W), before it is narrowed down to a token."""
    last = getattr(getattr(tokenizer.model, "encoder", None), "ln_post", None)
    if not isinstance(last, nn.Module):
        raise ValueError(f"{tokenizer} has no transformer: only its tokens can be probed")
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        tokenizer.encode(images)
    finally:
        hook.remove()
    return seen[0].float()
