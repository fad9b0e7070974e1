"""A model of the zoo: how it is built, and a batch of random numbers for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 16
VOCABULARY = 200


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        build: makes the model, in the mode to be predicted; draws from the global RNG, which the caller seeds.
        batch: makes the batch, the same one every time.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[], Any]


Zoo = Mapping[str, Entry]


def normal(*shape: int, seed: int = 0) -> Callable[[], Tensor]:
    """Return a maker of N(0, 1) numbers of shape (batch, *shape)."""
    return lambda: torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed))


def tokens(length: int, vocabulary: int = VOCABULARY, *, seed: int = 0) -> Callable[[], Tensor]:
    """Return a maker of random tokens of shape (batch, length)."""
    return lambda: torch.randint(0, vocabulary, (BATCH, length), generator=torch.Generator().manual_seed(seed))
