"""What several of these tests do: measure a model over many draws of its weights."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

import initwell as iw


class Measured(Protocol):
    """What ``measured_rms`` is."""

    def __call__(
        self, model: nn.Module, batch: Any, scheme: str, seeds: int, loss: Callable[..., Tensor] | None = None
    ) -> NDArray[np.float64]:
        """Measure a model over draws of its weights."""


@pytest.fixture
def measured_rms() -> Measured:
    """Return what measures (forward rms, gradient rms) of each row, by seeds 0, 1, …; 0 of no gradient."""

    def over_draws(
        model: nn.Module, batch: Any, scheme: str, seeds: int, loss: Callable[..., Tensor] | None = None
    ) -> NDArray[np.float64]:
        squares = []
        for seed in range(seeds):
            iw.init_(model, scheme, seed=seed)
            rows = iw.measure(model, batch, seed=seed, loss=loss).rows
            squares.append([[row["forward_rms"] ** 2, (row["gradient_rms"] or 0.0) ** 2] for row in rows])
        return np.asarray(np.sqrt(np.mean(squares, axis=0)))

    return over_draws
