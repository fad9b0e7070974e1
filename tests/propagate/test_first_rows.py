"""Norms of rows that few scores made: the law of their sizes by sampling, and gradients against the model itself."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.laws.averages import of_few_numbers
from initwell.propagate.laws.forms import Form, inverse_growth

DRAWS, WIDTH, LENGTH, SIZE = 200_000, 64, 12, 16


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.6], [1.0] * 5])
@pytest.mark.parametrize(("common", "alike"), [(0.0, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("varies", [0.0, 0.4])
def test_the_average_of_one_over_the_sizes_of_six_heads(
    weights: list[float], common: float, alike: float, varies: float
) -> None:
    """200,000 draws: 1/m of six heads has a variance, and a standard error below 1 %."""
    generator, d = np.random.default_rng(2), np.array(weights)
    c = d * (common**0.5 + generator.standard_normal((DRAWS, 6, len(d))))
    t = (c**2).sum(-1) + alike * c.sum(-1) ** 2
    t *= generator.gamma(1 / varies, varies, t.shape) if varies else 1.0
    m = t.sum(-1)
    found = inverse_growth([Form(d, common, alike, varies)] * 6)
    assert found == pytest.approx((1 / m).mean() * m.mean(), rel=0.02)


def test_sizes_of_few_numbers_have_the_tail_of_these_and_the_average_of_one_over_them() -> None:
    """A gamma law of the same E[1/v] has its E[v^-1.5] from rows that are not there."""
    v = (
        np.random.default_rng(4).chisquare(6, DRAWS)
        / 6
        * np.exp(np.random.default_rng(5).normal(-0.2, 0.4**0.5, DRAWS))
    )
    points, weights = of_few_numbers(1.0, 1 - 1 / (1.5 * np.exp(0.4)), 6.0)
    for power in (-0.5, -1.0, -1.5):
        assert weights @ points**power == pytest.approx((v**power).mean(), rel=0.02)


class Attention(nn.Module):
    """Causal linear attention, and a norm of all heads together or of each by itself."""

    def __init__(self, heads: int, *, together: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.heads, self.together = heads, together
        self.decay = nn.Buffer(torch.ones(LENGTH, LENGTH).tril()[None, None])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(len(x), LENGTH, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = (((q @ k.transpose(-1, -2)) * self.decay) @ v).transpose(1, 2)
        y = y.reshape(x.shape) if self.together else y
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        found: Tensor = self.out(y.reshape(x.shape))
        return found


def batch() -> Tensor:
    x = torch.randn(16, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    found: Tensor = WIDTH**0.5 * nn.functional.normalize(x, dim=-1)
    return found


def test_gradients_through_a_norm_of_rows_of_few_scores(measured_rms: Callable[..., np.ndarray]) -> None:
    """24 draws, standard errors of 1 to 2 %. With sizes as of wide rows those at the rows are 20 % too small."""
    model = Attention(4)
    predicted = iw.predict(model, batch(), plan=iw.plan(model, "lecun")).rows
    measured = measured_rms(model, batch(), "lecun", 24)
    ends = next(i for i, row in enumerate(predicted) if row["op"] == "aten.pow")
    assert ends == 6
    found = [row["gradient_rms"] for row in predicted[:ends]]
    assert found == pytest.approx(measured[:ends, 1].tolist(), rel=0.08)


def test_what_a_norm_of_a_head_by_itself_sends_back_is_unknown() -> None:
    """Its first row is one score: E[1/s²] is infinite but for what ε keeps of it."""
    model = Attention(4, together=False)
    found = iw.predict(model, batch(), plan=iw.plan(model, "lecun"))
    assert any("one or two scores made" in note for note in found.notes)
    at = {row["op"]: row for row in found.rows}
    assert found.rows[-1]["forward_rms"] == pytest.approx(1.0, rel=1e-3)
    assert found.rows[-1]["gradient_rms"] == pytest.approx(1.0, rel=1e-3)
    assert at["aten.pow"]["gradient_rms"] is None and found.rows[0]["gradient_rms"] is None


def test_what_a_layer_norm_sends_back_to_a_row_of_one_score_is_unknown() -> None:
    """It was marked exact, and a tenth of what is measured: 1/m of one score has no expectation."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            scores = (self.q(x) @ self.k(x).transpose(1, 2)) * torch.ones(LENGTH, LENGTH).tril()[None]
            found: Tensor = self.norm(scores @ self.v(x))
            return found

    found = iw.predict(Summed(), torch.randn(8, LENGTH, WIDTH))
    assert all(row["forward_rms"] is not None for row in found.rows)
    assert {row["path"] for row in found.rows if row["gradient_rms"] is None} >= {"q", "k", "v"}
    assert any("one or two scores" in note for note in found.notes)
