"""Decays of a state: exponentials of parameters that are as they are, against the model itself over many draws."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initwell as iw

WIDTH, CHANNELS, LEVELS, DRAWS = 64, 24, 16, 200


class Decays(nn.Module):
    """e^(−n·step) for n = 1 … 16, the step a softplus of its own for each channel; as Mamba's."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.step = gain, nn.Linear(WIDTH, CHANNELS, bias=False)
        self.logarithm = nn.Parameter(torch.log(torch.arange(1.0, LEVELS + 1)).repeat(CHANNELS, 1))

    def forward(self, x: Tensor) -> Tensor:
        steps = F.softplus(self.gain * self.step(x))
        return torch.exp(-torch.exp(self.logarithm) * steps[..., None])


@pytest.mark.parametrize("gain", [0.3, 2.0])
def test_decays_have_the_law_of_their_numbers_and_steps(gain: float) -> None:
    """200 draws of 32×24 steps: a standard error below 1 %. By the mean and variance of −a·y alone: 3 to 30 % off."""
    model, generator = Decays(gain), torch.Generator().manual_seed(0)
    found = iw.predict(model, iw.signal((32, WIDTH)), plan=iw.plan(model, "lecun", only=["step.*"]))
    rows = {(row["op"], i): row for i, row in enumerate(found.rows)}
    (rate,) = (row for (op, _), row in rows.items() if op == "aten.exp" and row["shape"] == (CHANNELS, LEVELS))
    last = found.rows[-1]
    assert rate["forward_rms"] == pytest.approx(np.sqrt(np.mean(np.arange(1.0, LEVELS + 1) ** 2)), rel=1e-6)
    draws = []
    for _ in range(DRAWS):
        model.step.weight.data.normal_(0, WIDTH**-0.5, generator=generator)
        with torch.no_grad():
            y = model(torch.randn(32, WIDTH, generator=generator))
        draws.append((float(y.mean()), float(y.square().mean())))
    mean, square = np.mean(draws, axis=0)
    assert last["mean"] == pytest.approx(mean, rel=0.02)
    assert last["forward_rms"] == pytest.approx(np.sqrt(square), rel=0.02)


class Summed(Decays):
    """The same, summed over the levels, and their rates drawn anew where it says so."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum(dim=-1)


@pytest.mark.parametrize("drawn", [False, True], ids=["known", "drawn"])
def test_decays_of_one_step_go_together_by_step_and_by_rate(drawn: bool) -> None:
    """200 draws of 32×24 steps. Levels that meet one step differ in rate alone: their sum varies little, or much."""
    model, generator = Summed(2.0), torch.Generator().manual_seed(0)
    chosen = None if drawn else ["step.*"]
    plan = iw.plan(model, "kaiming", only=chosen)
    found = iw.predict(model, iw.signal((32, WIDTH)), plan=plan).rows[-1]
    squares = []
    for seed in range(DRAWS):
        iw.init_(model, "kaiming", only=chosen, seed=seed)
        with torch.no_grad():
            y = model(torch.randn(32, WIDTH, generator=generator))
        squares.append([float(y.square().mean()), float(y.mean()), float((y[:-1] * y[1:]).mean())])
    square, mean, other = np.mean(squares, axis=0)
    assert found["mean"] == pytest.approx(mean, rel=0.02)
    assert found["forward_rms"] ** 2 - mean**2 == pytest.approx(square - mean**2, rel=0.05)
    assert found["overlap"] * found["forward_rms"] ** 2 == pytest.approx(other, rel=0.03)


class Scan(nn.Module):
    """A state of 16 levels that decay at rates 1 … 16 times a step, read by a row of its own; as Mamba's."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.write, self.read, self.into = (
            nn.Linear(WIDTH, n, bias=False) for n in (CHANNELS, LEVELS, LEVELS, CHANNELS)
        )
        self.logarithm = nn.Parameter(torch.log(torch.arange(1.0, LEVELS + 1)).repeat(CHANNELS, 1))

    def forward(self, x: Tensor) -> Tensor:
        steps, rates = F.softplus(self.step(x)), -torch.exp(self.logarithm)
        kept = torch.exp(rates * steps[..., None])
        added = steps[..., None] * self.write(x)[:, :, None] * self.into(x)[..., None]
        state, read, found = torch.zeros(len(x), CHANNELS, LEVELS), self.read(x), []
        for i in range(x.shape[1]):
            state = kept[:, i] * state + added[:, i]
            found.append((state @ read[:, i, :, None])[..., 0])
        return torch.stack(found, 1)


def test_rates_are_known_level_by_level_and_small_decays_get_large_gradients() -> None:
    """40 draws: standard errors of 2 to 3 %. With levels taken as alike, steps get 63 % too much, products 12 less."""
    model, x = Scan(), F.normalize(torch.randn(16, 6, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)
    x, chosen = x * WIDTH**0.5, ["step.*", "write.*", "read.*", "into.*"]
    found = iw.predict(model, x, plan=iw.plan(model, "lecun", only=chosen)).rows
    whole = (16, 6, CHANNELS, LEVELS)
    rows = [i for i, row in enumerate(found) if row["op"] == "aten.softplus" or row["shape"] == whole]
    runs = []
    for seed in range(40):
        iw.init_(model, "lecun", only=chosen, seed=seed)
        all_rows = iw.measure(model, x, seed=seed).rows
        runs.append([all_rows[i]["gradient_rms"] for i in rows])
    measured = np.sqrt(np.mean(np.square(np.array(runs, float)), axis=0))
    assert len(rows) == 5
    assert [found[i]["gradient_rms"] for i in rows] == pytest.approx(measured.tolist(), rel=0.06)


@pytest.mark.parametrize("steps", [F.softplus, F.relu], ids=["softplus", "relu"])
def test_decays_by_a_function_of_one_gaussian_are_one_function_of_it(steps: Callable[[Tensor], Tensor]) -> None:
    """e^(−softplus(u)) is sigmoid(−u). By a gamma law of −u gradients were 64 and 47 % too large, and approximate."""

    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, 256, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(-steps(self.layer(x)))

    model = Decay()
    first, *_, last = iw.predict(model, iw.signal((32, WIDTH)), plan=iw.plan(model, "kaiming")).rows
    u = (first["forward_rms"] * torch.randn(400_000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    y = torch.exp(-steps(u))
    (slope,) = torch.autograd.grad(y.sum(), u)
    assert last["forward_rms"] == pytest.approx(float(y.detach().square().mean().sqrt()), rel=0.01)
    assert first["gradient_rms"] == pytest.approx(float(slope.square().mean().sqrt()), rel=0.01)
    assert first["fidelity"] == last["fidelity"] == "exact"


def test_a_decay_of_kept_rates_and_its_square_stay_below_one() -> None:
    """e^(−8·r·softplus(p)) with r a sigmoid, as RG-LRU's: it was 13 % too large, and its square 1.17 in the rms."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.rate = nn.Linear(WIDTH, WIDTH, bias=False), nn.Parameter(torch.linspace(-4, -1, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            a = torch.exp(-8 * torch.sigmoid(self.layer(x)) * F.softplus(self.rate))
            return torch.sqrt(1 - a**2)

    model, generator = Gate(), torch.Generator().manual_seed(0)
    rows = iw.predict(model, iw.signal((32, WIDTH)), plan=iw.plan(model, "lecun", only=["layer.*"])).rows
    r = torch.sigmoid(torch.randn(20_000, WIDTH, generator=generator))
    a = torch.exp(-8 * r * F.softplus(model.rate.detach()))
    wanted = {"aten.exp": a, "aten.pow": a**2, "aten.rsub": 1 - a**2, "aten.sqrt": torch.sqrt(1 - a**2)}
    for row in rows:
        if row["op"] in wanted:  # 1.3 million entries
            size = float(wanted.pop(row["op"]).square().mean().sqrt())
            assert row["forward_rms"] == pytest.approx(size, rel=0.02), row["op"]
    assert not wanted


def test_the_square_of_a_decay_of_two_steps_stays_below_one() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            a: Tensor = torch.exp(-0.5 * torch.sigmoid(self.one(x)) * F.softplus(self.two(x))) ** 2
            return a

    model, generator = Gate(), torch.Generator().manual_seed(0)
    last = iw.predict(model, iw.signal((32, WIDTH)), plan=iw.plan(model, "lecun")).rows[-1]
    u, v = torch.randn(2, 1_000_000, generator=generator)
    size = float(torch.exp(-2 * torch.sigmoid(u) * F.softplus(v)).mean().sqrt())
    assert last["forward_rms"] <= 1.0
    assert last["forward_rms"] == pytest.approx(size, rel=0.03)
