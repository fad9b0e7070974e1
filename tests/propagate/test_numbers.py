"""Gradients of single numbers that multiply a whole value before a norm, against draws of weights."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

import initwell as iw

SEEDS, WIDTH = 64, 64
X = torch.randn(16, WIDTH, generator=Generator().manual_seed(0))


def root(x: Tensor) -> Tensor:
    """Normalize rows by hand."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Share(nn.Module):
    """A stream to which a branch is added, three times as large, before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(3.0))
        self.inner, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(root(x + self.number * self.inner(x)))
        return found


class Slopes(nn.Module):
    """An activation of two slopes of its own before a layer, the square of what is above 0, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.below = nn.Parameter(torch.tensor([0.8])), nn.Parameter(torch.tensor([0.5]))
        self.inner, self.last, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        u = self.inner(x)
        y = torch.where(u > 0, self.number * u * u + u, self.below * torch.expm1(u.clamp(max=0)))
        found: Tensor = self.out(root(self.last(y)))
        return found


class Random(Share):
    """The same without a norm: what comes back does not know of rows."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(x + self.number * self.inner(x))
        return found


@pytest.mark.parametrize("kind", [Share, Slopes, Random])
def test_what_a_number_gets(kind: type[nn.Module]) -> None:
    """The share got 3.1 times and the slope 4.8 times as much, as of gradients that do not know of rows' lengths.

    One number a draw: of 64 draws, standard errors of 9 %.
    """
    model = kind()
    rows = iw.predict(model, X, plan=iw.plan(model, "lecun")).parameters
    found = next(row["gradient_rms"] for row in rows if row["parameter"] == "number")
    total = 0.0
    for seed in range(SEEDS):
        iw.init_(model, "lecun", seed=seed)
        out = model(X)
        start = torch.randn(out.shape, generator=Generator().manual_seed(seed))
        parameter = model.get_parameter("number")
        (sent,) = torch.autograd.grad(out, parameter, start)
        total += float(sent.square().sum())
    assert found == pytest.approx(math.sqrt(total / SEEDS), rel=0.3)


class Cosines(nn.Module):
    """Cosine attention whose scores each head multiplies by a number of its own, behind a clamp as in Swin v2."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.full((4, 1, 1), math.log(10.0)))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.zeros(4, 8, 8)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        scores = normalize(q, dim=-1) @ normalize(k, dim=-1).mT * self.number.clamp(max=math.log(100.0)).exp()
        scores = scores if self.bias is None else scores + self.bias
        found: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return found


@pytest.mark.parametrize("bias", [False, True])
def test_what_a_number_of_each_head_gets(bias: bool) -> None:
    """It got 2.3 times as much, as of scores whose gradients do not know of them; standard errors are 7 %."""
    model, x, squares = Cosines(bias), torch.randn(8, 8, WIDTH, generator=Generator().manual_seed(0)), 0.0
    found = next(r for r in iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows if r["op"] == "aten.exp")
    for seed in range(32):
        iw.init_(model, "kaiming", seed=seed)
        rows = iw.measure(model, x, seed=seed).rows
        squares += next(r for r in rows if r["op"] == "aten.exp")["gradient_rms"] ** 2 / 32
    assert found["gradient_rms"] == pytest.approx(math.sqrt(squares), rel=0.25)
