"""Softmax over rows of two kinds of scores, and windows cut from padded images, against sampling."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.laws.mixtures import Monomial, TwoKinds
from initwell.propagate.moments.atoms import viewed
from initwell.propagate.moments.signal import independent
from initwell.propagate.rules.parts import padded, sliced

ROWS = 200_000
SEEDS = 24


def sampled(rows: TwoKinds, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the weights of ROWS rows, of both kinds."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    one, two = (int(n) for n in rows.counts)
    first = normal(ROWS, one)
    if math.isfinite(rows.width):
        # A coordinate of a point on a sphere.
        others = sum((normal(ROWS, one) ** 2 for _ in range(int(rows.width) - 1)), torch.zeros(()))
        first = first * math.sqrt(rows.width) / (first**2 + others).sqrt()
    first = first * math.sqrt(rows.variances[0]) + normal(ROWS, 1) * math.sqrt(rows.offset)
    weights = torch.softmax(torch.cat([first, normal(ROWS, two) * math.sqrt(rows.variances[1])], 1), 1)
    return weights[:, :one], weights[:, one:]


KINDS = {
    "zeros": TwoKinds((14, 35), (2.0, 0.0)),
    "zeros beside what all others share": TwoKinds((4, 12), (1.0, 0.0), offset=0.5),
    "both with a bias": TwoKinds((4, 45), (3.4, 0.8), offset=0.2),
    "of rows of one length": TwoKinds((14, 35), (4.0, 0.0), width=12.0),
}


@pytest.mark.parametrize("rows", KINDS.values(), ids=KINDS.keys())
def test_moments_of_weights_of_two_kinds(rows: TwoKinds) -> None:
    """Of 200 000 rows; a standard error of the fourth moments is below 1 %."""
    p, z = sampled(rows, 0)
    expected: dict[Monomial, Tensor] = {
        ((1,), ()): p[:, 0],
        ((), (1,)): z[:, 0],
        ((2,), ()): (p**2).mean(1),
        ((1, 1), ()): (p.sum(1) ** 2 - (p**2).sum(1)) / (p.shape[1] * (p.shape[1] - 1)),
        ((1,), (1,)): p.mean(1) * z.mean(1),
        ((2,), (1,)): (p**2).mean(1) * z.mean(1),
    }
    for powers, values in expected.items():
        assert rows.moment(powers) == pytest.approx(float(values.mean()), rel=0.02), powers
    square = rows.sum(rows.summed(rows.summed({((2,), ()): 1.0}, 1, 1), 1, 1))
    assert square == pytest.approx(float((p**2 * z.sum(1, keepdim=True) ** 2).mean()), rel=0.02)


def test_windows_keep_the_zeros_around_an_image_apart() -> None:
    """16 rows and 5 of padding are two windows of 7 and one of 2, exactly, and 16 again where padding is cut off."""
    image = padded(independent((4, 16, 3), 2.0), 1, 0, 5)
    windows = viewed(image, (4, 3, 7, 3))
    assert [atom.parts for atom in windows.atoms[1:3]] == [(2, 1), (2, 5)]
    assert windows.diagonal.squeeze().tolist() == [[2.0, 2.0], [2.0, 0.0]]
    back = sliced(viewed(windows, (4, 21, 3)), 1, 0, 16)
    assert (back.q, back.fidelity) == (2.0, "exact")


class Windows(nn.Module):
    """Attention within windows of an image that they do not divide; the norm before or behind the padding.

    Where it is not cropped, gradients reach the rows of zeros too.
    """

    def __init__(self, size: int, window: int, *, bias: bool, inside: bool, kept: str = "mean") -> None:
        super().__init__()
        self.cropped, self.pooled = kept != "all", kept == "mean"
        self.size, self.window, self.inside = size, window, inside
        self.enter, self.norm, self.qkv = nn.Linear(48, 64), nn.LayerNorm(64), nn.Linear(64, 192)
        self.proj, self.out = nn.Linear(64, 64), nn.Linear(64, 10)
        self.table = nn.Parameter(torch.randn(2, window**2, window**2)) if bias else None

    def attended(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 32).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(32)
        scores = scores if self.table is None else scores + self.table
        y: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = F.pad(x if self.inside else self.norm(x), (0, 0, *[0, -self.size % self.window] * 2))
        count, side = y.shape[1] // self.window, self.window
        y = y.view(-1, count, side, count, side, 64).transpose(2, 3).reshape(-1, side**2, 64)
        y = self.attended(self.norm(y) if self.inside else y)
        y = y.view(-1, count, count, side, side, 64).transpose(2, 3).reshape(-1, count * side, count * side, 64)
        y = x + y[:, : self.size, : self.size] if self.cropped else y
        z: Tensor = self.out(y.mean((1, 2)) if self.pooled else y)
        return z


CASES = {
    "one window": (4, 6, False, False, "mean"),
    "one and a part": (7, 5, False, False, "mean"),
    "with a bias": (7, 5, True, False, "mean"),
    "normalized behind the padding": (7, 5, False, True, "mean"),
    "mostly padding": (8, 16, False, False, "image"),
    "a gradient at the padding, too": (8, 16, False, False, "all"),
}


@pytest.mark.parametrize(("size", "window", "bias", "inside", "kept"), CASES.values(), ids=CASES.keys())
def test_attention_in_windows_of_padded_images(size: int, window: int, *, bias: bool, inside: bool, kept: str) -> None:
    """Scores, weights and values, and the gradients of queries and keys, 24 draws.

    With padding averaged over, scores are 20 to 50 % off, and gradients by up to ten times where zeros are normalized;
    with the products of tokens and of zeros taken as alike, the queries' gradients by half and more where most keys are
    zeros. Standard errors are below 2 %.
    """
    model = Windows(size, window, bias=bias, inside=inside, kept=kept)
    batch = torch.randn(8, size, size, 48, generator=torch.Generator().manual_seed(0))
    found = iw.predict(model, batch, plan=iw.plan(model, "lecun"))
    squares = np.zeros((len(found.rows), 2))
    for seed in range(SEEDS):
        iw.init_(model, "lecun", seed=seed)
        rows = iw.measure(model, batch, seed=seed).rows
        squares += [[(row[key] or 0.0) ** 2 for key in ("forward_rms", "gradient_rms")] for row in rows]
    for row, (forward, backward) in zip(found.rows, np.sqrt(squares / SEEDS), strict=True):
        name = (row["path"], row["op"])
        assert row["forward_rms"] == pytest.approx(forward, rel=0.06), name
        if row["path"] in ("qkv", "enter") or row["op"] == "aten.bmm":
            assert row["gradient_rms"] == pytest.approx(backward, rel=0.12), name


class Normalized(nn.Module):
    """Attention over normalized tokens and as many zeros; beside keys' scores such of a table of positions."""

    def __init__(self, *, table: bool) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(64, 64, bias=False), nn.LayerNorm(64)
        self.query, self.key, self.value = (nn.Linear(64, 64, bias=False) for _ in range(3))
        self.table = nn.Parameter(torch.randn(96, 16)) if table else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.norm(self.enter(x)), (0, 0, 0, 48))
        q, k, v = (f(x).view(len(x), 96, 4, 16).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / 4
        if self.table is not None:
            scores = scores + 1.5 * q @ self.table.T
        y: Tensor = scores.softmax(-1) @ v
        return y


@pytest.mark.parametrize(("table", "close"), [(False, 0.02), (True, 0.06)], ids=["keys alone", "keys and a table"])
def test_large_scores_beside_zeros(table: bool, close: float) -> None:
    """Weights of zeros and of normalized tokens, whose scores have shorter tails than a Gaussian; 12 draws.

    With Gaussian ones the weights are 6 % too large. Where zeros have the score of a table, and it counts as like that
    of tokens, the values' sums are a fifth too small. Standard errors are below 1.5 %.
    """
    model = Normalized(table=table)
    batch = torch.randn(16, 48, 64, generator=torch.Generator().manual_seed(0))
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    squares = np.zeros(len(found.rows))
    for seed in range(12):
        iw.init_(model, "kaiming", seed=seed)
        squares += [(row["forward_rms"] or 0.0) ** 2 for row in iw.measure(model, batch, seed=seed).rows]
    measured = np.sqrt(squares / 12)
    weights = next(i for i, row in enumerate(found.rows) if row["op"] == "aten._softmax")
    assert found.rows[weights]["forward_rms"] == pytest.approx(measured[weights], rel=close)
    assert found.rows[-1]["forward_rms"] == pytest.approx(measured[-1], rel=0.06)
