"""Gradients along rows: what the scales of hand-written norms get, against measurement and by sampling."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw

SEEDS = 16
WIDTH = 64


class Root(nn.Module):
    """x/√(mean(x²) + ε), written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Deviation(nn.Module):
    """(x − mean)/√(mean((x − mean)²) + ε), written by hand as in DeBERTa: the deviations are taken twice."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-6)


class Once(nn.Module):
    """The same as in I-BERT: the deviations are taken once, and their squares are of these."""

    def forward(self, x: Tensor) -> Tensor:
        y = x - x.mean(-1, keepdim=True)
        return y / torch.sqrt(1e-6 + (y**2).mean(-1, keepdim=True))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.f(x)
        return out


class Gated(nn.Module):
    """W(relu(U x)·(V x))."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.gate(x)) * self.up(x))
        return out


class Scores(nn.Module):
    """softmax(q kᵀ/√d) v with queries normalized by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.norm = Root()

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.norm(self.q(x)) @ self.k(x).transpose(1, 2) / math.sqrt(WIDTH)).softmax(-1)
        out: Tensor = weights @ self.v(x)
        return out


class Keys(nn.Module):
    """Large scores of keys that are normalized by hand, and of queries that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.norm = Root()

    def forward(self, x: Tensor) -> Tensor:
        keys = self.k(self.norm(self.first(x)))
        out: Tensor = (self.q(x) @ keys.transpose(1, 2) / 2).softmax(-1) @ self.v(x)
        return out


class Rotated(nn.Module):
    """Large scores of normalized queries in heads, of which two halves are taken apart, turned and put together."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.norm = Root()

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03]).repeat(8)
        q, k = self.norm(self.q(x)), self.k(x)
        q, k = (h * angles.cos() + torch.cat([-h[..., 16:], h[..., :16]], -1) * angles.sin() for h in heads(q, k))
        out: Tensor = (q @ k.transpose(-1, -2)).softmax(-1) @ next(heads(self.v(x)))
        return out.transpose(1, 2).reshape(x.shape)


def heads(*values: Tensor) -> Iterator[Tensor]:
    """Yield each value in two heads."""
    return (x.view(*x.shape[:2], 2, WIDTH // 2).transpose(1, 2) for x in values)


class Values(nn.Module):
    """Attention to normalized values, in so many heads, and a norm of what it makes."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.norm, self.count = Root(), count

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.count, WIDTH // self.count)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = (q @ k.transpose(-1, -2)).softmax(-1) @ self.norm(v)
        made: Tensor = self.norm(self.o(out.transpose(1, 2).reshape(x.shape)))
        return made


class Grouped(nn.Module):
    """Four heads of normalized queries, two of which read one head's keys and values, not those that come later."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))
        self.norm = Root()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 16)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (y[:, :, None].expand(-1, -1, 2, -1, -1).reshape(q.shape) for y in (k, v))
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (self.norm(q) @ k.transpose(-1, -2)).masked_fill(later, -1e9)
        out: Tensor = self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
        return out


class Small(nn.Module):
    """x/1000: what a norm makes of it is less than 1, for its ε is as large as its square."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 1000


class Unlike(nn.Module):
    """Rows of two sizes: every second one is a fifth."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[::2], x[1::2] / 5])


class Heads(nn.Module):
    """Norms of four heads, side by side and gated; ``Root`` of the whole follows a layer later."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out, self.norm = linear(), linear(), Root()

    def forward(self, x: Tensor) -> Tensor:
        heads = self.norm(x.view(*x.shape[:-1], 4, -1)).view(x.shape)
        y: Tensor = self.out(heads * torch.sigmoid(self.gate(x.detach())))
        return y


class Averaged(nn.Module):
    """Four like streams, each normalized, of which a layer of all makes gates of their average."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.last = nn.Linear(4 * WIDTH, 4 * WIDTH, bias=False), linear()
        self.norm, self.turn = Root(), nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        streams = self.norm(x.unsqueeze(1) + 0.1 * self.turn)
        rows = streams.reshape(len(x), -1)
        gates = (self.gates(rows) / 16).sigmoid().view(-1, 4, WIDTH)
        out: Tensor = self.last((gates * rows.view(-1, 4, WIDTH)).mean(1)).tanh()
        return out


class Twofold(nn.Module):
    """Normalized rows are an output by themselves, as an encoder's are, and those of a layer and a norm behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = linear(), Root()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.norm(x)
        return rows, 8 * self.norm(self.layer(rows))


class Together(nn.Module):
    """Heads that are normalized each by itself, gated, and all of them again as one row."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last, self.norm = linear(), linear(), Root()

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x).sigmoid().view(-1, 4, WIDTH // 4)
        out: Tensor = self.last(self.norm((gates * self.norm(x.view(-1, 4, WIDTH // 4))).reshape(x.shape)))
        return out


class Twins(nn.Module):
    """Two norms side by side whose ε are as large as their squares, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Sequential(linear(), Small(), Root()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) + self.two(x)
        return y


class ByHand(nn.Module):
    """An activation of many ops, as xIELU: αx² + x/2 above 0, α(eˣ − 1 − x) + x/2 below."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 0.8 * x * x + 0.5 * x, 0.8 * (torch.expm1(x.clamp(max=0.0)) - x) + 0.5 * x)


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH, bias=False)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    # name → model and shape of its input; the comment says by how much independence would be off
    "random": (lambda: nn.Sequential(linear(), Root(), linear()), (16, WIDTH)),
    "norm after a linear layer": (lambda: nn.Sequential(linear(), Root(), linear(), Root(), linear()), (16, WIDTH)),
    "norm after relu": (
        lambda: nn.Sequential(linear(), Root(), linear(), nn.ReLU(), linear(), Root(), linear()),
        (16, WIDTH),
    ),
    "norm after gelu": (
        lambda: nn.Sequential(linear(), Root(), linear(), nn.GELU(), linear(), Root(), linear()),
        (16, WIDTH),
    ),
    "norm after an activation by hand": (
        lambda: nn.Sequential(linear(), Root(), linear(), ByHand(), linear(), Root(), linear()),
        (16, WIDTH),
    ),
    "norm after a gated layer": (lambda: nn.Sequential(linear(), Root(), Gated(), Root(), linear()), (16, WIDTH)),
    "residual block before a norm": (
        lambda: nn.Sequential(
            linear(), Deviation(), Residual(nn.Sequential(linear(), nn.GELU(), linear())), Deviation(), linear()
        ),
        (16, WIDTH),
    ),
    "deviations that are taken once": (
        lambda: nn.Sequential(
            linear(), Once(), Residual(nn.Sequential(linear(), nn.GELU(), linear())), Once(), linear()
        ),
        (16, WIDTH),
    ),
    "queries": (lambda: nn.Sequential(linear(), Scores(), linear()), (16, 12, WIDTH)),
    "keys": (Keys, (64, 20, WIDTH)),
    "queries that are turned": (lambda: nn.Sequential(linear(), Rotated(), linear()), (16, 12, WIDTH)),
    "queries of short heads that read some keys": (
        lambda: nn.Sequential(linear(), Grouped(), linear()),
        (16, 12, WIDTH),
    ),
    "values of one head": (lambda: nn.Sequential(linear(), Values(1), linear()), (16, 12, WIDTH)),
    "values of four heads": (lambda: nn.Sequential(linear(), Values(4), linear()), (16, 12, WIDTH)),
    "rows of two sizes": (lambda: nn.Sequential(linear(), Unlike(), Root(), linear()), (64, WIDTH)),
    "ε of the norm that follows": (
        lambda: nn.Sequential(linear(), Root(), linear(), Small(), Root(), linear()),
        (16, WIDTH),
    ),
    "heads that are gated before a norm": (lambda: nn.Sequential(linear(), Heads(), Root(), linear()), (16, WIDTH)),
    "streams that are averaged": (lambda: nn.Sequential(linear(), Averaged(), linear()), (16, WIDTH)),
    "rows that are an output, too": (lambda: nn.Sequential(linear(), Twofold()), (16, WIDTH)),
    "heads that one norm follows": (lambda: nn.Sequential(linear(), Together()), (16, WIDTH)),
    "ε of a layer norm that follows": (
        lambda: nn.Sequential(linear(), Root(), linear(), Small(), nn.LayerNorm(WIDTH, eps=1e-6), linear()),
        (16, WIDTH),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_reaches_the_scale_of_a_norm(name: str) -> None:
    """The gradient at the ε of the first norm: 16 seeds of 16 rows or more give a standard error below 5 %.

    As random it would be n·E[y²]·E[g²] in all of them: 4 to 10⁴ times what is measured where a norm follows.
    """
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model, batch = build(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    places = [i for i, row in enumerate(predicted.rows) if row["op"] == "aten.add" and row["shape"][-1:] == (1,)]
    squares = np.zeros((SEEDS, len(places)))
    size = np.zeros(SEEDS)
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        rows = iw.measure(model, batch, seed=seed).rows
        squares[seed] = [rows[i]["gradient_rms"] ** 2 for i in places]
        size[seed] = max(row["gradient_rms"] ** 2 for row in rows if row["gradient_rms"])
    found = [predicted.rows[i]["gradient_rms"] for i in places]
    # Rounding is all that is left where a norm follows at once.
    assert found[0] == pytest.approx(math.sqrt(squares[:, 0].mean()), rel=0.15, abs=1e-5 * math.sqrt(size.mean()))


class OfPlaces(nn.Module):
    """x/√(mean(x²) + ε) over the channels of each place, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


def test_what_reaches_the_scale_of_a_norm_of_places_through_1x1_convolutions() -> None:
    """A 1×1 convolution keeps each place's R, and a 3×3 one does not: 12 seeds of 64 places, standard errors of 3 %.

    As random, R of the first norm would be three times what it is, and that of the second, which a norm follows, 10⁴.
    """
    torch.manual_seed(0)
    parts = [nn.Conv2d(WIDTH * 2, WIDTH * 2, 1, bias=False), OfPlaces(), nn.GELU()]
    for _ in range(3):
        parts += [nn.Conv2d(WIDTH * 2, WIDTH * 2, 1, bias=False), OfPlaces()]
    model = nn.Sequential(*parts, nn.Conv2d(WIDTH * 2, WIDTH, 3, padding=1, bias=False))
    batch = torch.randn(4, WIDTH * 2, 4, 4)
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    places = [i for i, row in enumerate(predicted) if row["op"] == "aten.add"]
    squares = np.zeros((12, len(places)))
    for seed in range(12):
        iw.init_(model, "kaiming", seed=seed)
        rows = iw.measure(model, batch, seed=seed).rows
        squares[seed] = [rows[i]["gradient_rms"] ** 2 for i in places]
    found, measured = [predicted[i]["gradient_rms"] for i in places], np.sqrt(squares.mean(0))
    assert found[0] == pytest.approx(measured[0], rel=0.12)
    assert found[1:3] == pytest.approx([0.0, 0.0], abs=1e-3 * measured[0])
    assert found[3] == pytest.approx(measured[3], rel=0.12)


def test_what_two_small_rows_have_in_common_does_not_cancel() -> None:
    """R of both adds up to 0, but each has its own share of it left: 16 seeds, a standard error of 4 %."""
    torch.manual_seed(0)
    model = nn.Sequential(linear(), Root(), Twins(), Root(), linear())
    batch = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    first = next(i for i, row in enumerate(predicted.rows) if row["op"] == "aten.add")
    square = 0.0
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        square += iw.measure(model, batch, seed=seed).rows[first]["gradient_rms"] ** 2
    assert predicted.rows[first]["gradient_rms"] == pytest.approx(math.sqrt(square / SEEDS), rel=0.15)


def test_what_a_norm_takes_off_is_a_part_of_the_gradient() -> None:
    """Of 6 features a sixth lies along the row: added to the rest, as if by chance, it made 1.18 of 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 6, bias=False), Root(), nn.Linear(6, WIDTH, bias=False))
    batch = torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(1))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    squares = np.zeros(len(predicted))
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        squares += [float(row["gradient_rms"] or 0.0) ** 2 for row in iw.measure(model, batch, seed=seed).rows]
    ratio = float(predicted[0]["gradient_rms"]) / math.sqrt(squares[0] / SEEDS)
    # 16 draws of 6 rows of weights that the gradient comes through: a standard error of 3 %.
    assert predicted[0]["op"] == "aten.mm"
    assert ratio == pytest.approx(1.0, abs=0.1)


def test_gradients_through_means_taken_off_by_hand() -> None:
    """Four residual blocks, 16 seeds of 16·64 entries: as independent each norm would add 7 %, the four of them 30 %.

    Each adds 1.5 % still, as the lengths of rows that are partly normalized vary less than those of Gaussian ones.
    """
    blocks = [m for _ in range(4) for m in (Residual(nn.Sequential(linear(), nn.GELU(), linear())), Deviation())]
    torch.manual_seed(0)
    model, batch = nn.Sequential(linear(), *blocks, linear()), torch.randn(16, WIDTH)
    predicted = iw.predict(model, batch, plan=iw.plan(model, "pytorch"))
    squares = []
    for seed in range(SEEDS):
        iw.init_(model, "pytorch", seed=seed)
        squares.append([(row["gradient_rms"] or 0.0) ** 2 for row in iw.measure(model, batch, seed=seed).rows])
    measured = np.sqrt(np.mean(squares, axis=0))
    for row, size in zip(predicted.rows, measured, strict=True):
        if row["op"] in ("aten.mm", "aten.gelu"):
            assert row["gradient_rms"] == pytest.approx(size, rel=0.1), row["path"]
