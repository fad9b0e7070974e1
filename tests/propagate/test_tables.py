"""One table that is looked up at several sets of places: counted against all pairs, predictions against draws.

Of 100 draws of tables of 10×64 a mean square has a standard error of about 1.5 %, its root half of that. Where two
look-ups that show one row, or half of the time the same, counted as independent, the sums were 11 to 23 % too small.
"""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.shared.tables import _counted

ROWS, WIDTH, DRAWS = 10, 64, 100


class Boxes(nn.Module):
    """Left, top, right and bottom of boxes, each axis with a table of its own."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.across = nn.Embedding(ROWS, WIDTH, padding_idx=padding)
        self.down = nn.Embedding(ROWS, WIDTH)
        self.last = nn.Linear(WIDTH, 32)

    def forward(self, box: Tensor) -> Tensor:
        left, top, right, bottom = box.unbind(-1)
        found: Tensor = self.last(self.across(left) + self.down(top) + self.across(right) + self.down(bottom))
        return found


def boxes() -> Tensor:
    """Boxes of no height at all, of which every third has no width."""
    found = torch.randint(0, ROWS, (8, 12, 4), generator=torch.Generator().manual_seed(0))
    found[..., 3] = found[..., 1]
    found[:, :4, 2] = found[:, :4, 0]
    return found


def squares(padding: int | None, seed: int) -> list[float]:
    """Return the mean squares of the output and of each parameter's gradient, for one draw."""
    torch.manual_seed(seed)
    model = Boxes(padding)
    found = model(boxes())
    found.backward(torch.randn_like(found))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [float(t.detach().square().mean()) for t in (found, *gradients)]


@pytest.mark.parametrize("padding", [None, 3])
def test_what_one_table_shows_twice_adds_up(padding: int | None) -> None:
    model = Boxes(padding)
    found = iw.predict(model, boxes(), plan=iw.plan(model, "pytorch"))
    predicted = [found.rows[-1]["forward_rms"], *(row["gradient_rms"] for row in found.parameters)]
    measured = np.sqrt(np.mean([squares(padding, seed) for seed in range(DRAWS)], axis=0))
    np.testing.assert_allclose(predicted, measured, rtol=0.03)


@pytest.mark.parametrize("padding", [-1, 1])
def test_pairs_of_places_are_counted_as_they_are(padding: int) -> None:
    generator = torch.Generator().manual_seed(1)
    one, two = (torch.randint(0, 3, (3, 4), generator=generator) for _ in range(2))
    found, pairs = np.zeros((2, 2, 2)), np.zeros((2, 2))
    for (i, j), (k, m) in product(np.ndindex(3, 4), repeat=2):
        pattern = int(i != k), int(j != m)
        pairs[pattern] += 1
        a, b = int(one[i, j]), int(two[k, m])
        if padding not in (a, b):
            found[(int(a != b), *pattern)] += 1
    np.testing.assert_allclose(_counted(one, two, padding), found / pairs, atol=1e-12)
