"""Tables that follow from a few random numbers, against the model's own forward over many draws of these.

Over 4000 draws the mean square of cosines, whose average over the table varies by at most 0.1 from draw to draw, has a
standard error below 0.2 %; as cosines of angles without numbers it is ½, 10 to 40 % off.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.given.draws import over_draws
from initwell.propagate.given.known import known_values
from initwell.propagate.given.measured import pair_averages
from initwell.trace.recorder import record

SIDE, FREQUENCIES, DRAWS = 6, 4, 4000


class Stretched(nn.Module):
    """Turns channels by the coordinates of places, stretched and shifted at random."""

    def __init__(self, *, shifted: bool) -> None:
        super().__init__()
        self.shifted, self.layer = shifted, nn.Linear(FREQUENCIES, FREQUENCIES)

    def table(self) -> Tensor:
        places = torch.arange(0.5, SIDE) / SIDE * 2 - 1
        places = places * torch.empty(1).uniform_(-math.log(2), math.log(2)).exp()
        if self.shifted:
            places = places + 0.5 * torch.rand(1)
        return torch.cos(2 * math.pi * places[:, None] * 4.0 ** -torch.arange(FREQUENCIES))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) * self.table()
        return found


@pytest.mark.parametrize("shifted", [False, True])
def test_a_table_of_few_random_numbers_has_the_moments_of_its_draws(shifted: bool) -> None:
    model, batch = Stretched(shifted=shifted), torch.randn(8, SIDE, FREQUENCIES)
    trace = record(model, batch)
    values = known_values(trace)
    (cosine,) = (op for op in trace.ops if op.functional == "aten.cos" and op.phase == "forward")
    found = over_draws(trace, values, cosine.outputs[0])
    assert found is not None
    torch.manual_seed(0)
    expected = np.mean([pair_averages(model.table()) for _ in range(DRAWS)], axis=0)
    np.testing.assert_allclose(found.moments, expected, atol=0.006)
    predicted = iw.predict(model, batch, plan=iw.plan(model, "pytorch")).rows
    by_op = {row["op"]: row["forward_rms"] for row in predicted}
    assert by_op["aten.mul"] / by_op["aten.addmm"] == pytest.approx(math.sqrt(expected[0, 0]), rel=0.004)


def test_a_table_of_many_random_numbers_is_left_to_other_rules() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.cos(torch.rand(SIDE, FREQUENCIES))

    trace = record(Noisy(), torch.randn(8, SIDE, FREQUENCIES))
    (cosine,) = (op for op in trace.ops if op.functional == "aten.cos")
    assert over_draws(trace, known_values(trace), cosine.outputs[0]) is None


def test_uniform_numbers_lie_where_it_is_said() -> None:
    class Uniform(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.empty_like(x).uniform_(1.0, 4.0)

    found = iw.predict(Uniform(), iw.signal((16, 32)))
    assert found.unsupported == {}
    assert found.rows[-1]["forward_rms"] == pytest.approx(math.sqrt(7.0), rel=1e-3)  # (64 − 1)/9
