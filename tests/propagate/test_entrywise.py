"""Ops between two linear layers, forward and backward, against sampling: running sums, turns, spreads, products."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw

DRAWS, SAMPLES, TOKENS, WIDTH = 200, 16, 12, 48


class Between(nn.Module):
    """A linear layer, a function of its output, a linear layer."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn
        self.one, self.two = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        inside = self.one(x)
        y: Tensor = self.two(self.fn(inside))
        if kept is not None:
            kept |= {"inside": inside, "outside": y}
        return y


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "running sums of tokens": lambda x: x.cumsum(1),
    "running sums of features": lambda x: x.cumsum(-1),
    "running sums of rectified tokens": lambda x: torch.relu(x).cumsum(1),
    "running sums, twice": lambda x: x.cumsum(1).cumsum(1),
    "turned round": lambda x: x.cumsum(1).flip(1) + 1,
    "quarter turn": lambda x: x.cumsum(1).view(len(x), 3, 4, -1).rot90(1, (1, 2)).flatten(1, 2),
}


def sampled(model: Between, batch: Tensor) -> dict[str, list[float]]:
    """Return mean squares of values and of their gradients, and the standard errors of both."""
    rows: dict[str, list[tuple[float, float]]] = {}
    generator = torch.Generator().manual_seed(1)
    for _ in range(DRAWS):
        for weight in model.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) / WIDTH**0.5
        kept: dict[str, Tensor] = {}
        y = model(batch, kept)
        kept |= dict(model.named_parameters())
        found = torch.autograd.grad(y, list(kept.values()), torch.randn(y.shape, generator=generator))
        for (name, value), g in zip(kept.items(), found, strict=True):
            rows.setdefault(name, []).append((float(value.detach().square().mean()), float(g.square().mean())))
    means = {name: np.array(both) for name, both in rows.items()}
    return {name: [*both.mean(0), *both.std(0) / DRAWS**0.5] for name, both in means.items()}


def predicted(model: Between, batch: Tensor) -> dict[str, tuple[float | None, float | None]]:
    for weight in model.parameters():  # of which one draw is taken, at just the size that all have on average
        weight.data /= weight.square().mean().sqrt() * WIDTH**0.5
    found = iw.predict(model, batch)
    assert not found.unsupported
    sizes = {row["parameter"]: (row["weight_rms"], row["gradient_rms"]) for row in found.parameters}
    ends = {"inside": found.rows[0], "outside": found.rows[-1]}
    return sizes | {name: (row["forward_rms"], row["gradient_rms"]) for name, row in ends.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_op_between_two_layers_by_sampling(name: str) -> None:
    model = Between(FUNCTIONS[name])
    batch = torch.randn(SAMPLES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    measured = sampled(model, batch)
    # 200 draws: standard errors of the squares of 0.2 to 2 %; 4 % are for layers of 48 numbers, whose products vary.
    for row, sizes in predicted(model, batch).items():
        for size, mean, error in zip(sizes, measured[row][:2], measured[row][2:], strict=True):
            assert size is not None, row
            assert size**2 == pytest.approx(mean, abs=3 * error + 0.04 * mean), row
