"""Rows times themselves, as with one value for queries and keys: played between layers, else unknown with a reason.

As sums of products of independents, softmax weights of 20 rows of 64 features without projections were 65 % too small,
and what they make 62 %.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize, relu

import initwell as iw
from predict_bench.compare import Value, paired

WIDTH = 16
SEEDS = 8
_WHY = "rows times themselves"


class _Layer(nn.Module):
    def __init__(self, how: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.how = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.one(x), self.two)


class _Block(nn.Module):
    """Two heads of attention with one value for queries and keys, behind a norm and beside a stream."""

    def __init__(self, keys: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.keys = nn.LayerNorm(WIDTH), keys
        self.q, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, v = (layer(y).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.v))
        scores = q @ self.keys(q).mT / math.sqrt(WIDTH / 2)
        found: Tensor = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return found


class _Called(nn.Module):
    """Two heads of attention whose queries and keys are made by one layer, called twice."""

    def __init__(self, scores: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.scores = nn.LayerNorm(WIDTH), scores
        self.q, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.q, self.v))
        found: Tensor = x + self.out((self.scores(q, k) @ v).transpose(1, 2).flatten(2))
        return found


def _soft(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(WIDTH / 2)).softmax(-1)


def _positive(q: Tensor, k: Tensor) -> Tensor:
    a = (relu(q) @ relu(k).mT).tril()
    return a / (a.sum(-1, keepdim=True) + 1e-6)


class _WithToken(nn.Module):
    """Only a class token's row is read in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.embed = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Linear(WIDTH, WIDTH)
        self.block, self.head = _Block(lambda q: q), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        found: Tensor = self.head(self.block(rows)[:, 0])
        return found


def _stack(keys: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), _Block(keys), _Block(keys), nn.Linear(WIDTH, 4))


def _attended(h: Tensor, scale: float = 1.0) -> Tensor:
    return torch.softmax((h * scale) @ h.mT, -1) @ h


OWN: dict[str, Callable[[], nn.Module]] = {
    "attention without projections": lambda: _Layer(lambda h, two: two(_attended(h, 0.25))),
    "normalized rows": lambda: _Layer(lambda h, two: two(_attended(layer_norm(h, (WIDTH,)), 0.25))),
    "features": lambda: _Layer(lambda h, two: h.mT @ h),
    "shared queries and keys": lambda: _stack(lambda q: q),
    "keys of length 1": lambda: _stack(lambda q: normalize(q, dim=-1)),
    "a layer called twice": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), _Called(_soft), nn.Linear(WIDTH, 4)),
    "a class token": _WithToken,
}
OTHERS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "two images": lambda h, two: h @ two(h).mT,
    "unlike rows of one value": lambda h, two: h[:, :3] @ h[:, 3:].mT,
    "one row": lambda h, two: h[:, :1] @ h[:, :1].mT,
}


def _batch(samples: int = 16) -> Tensor:
    return torch.randn(samples, 6, WIDTH, generator=torch.Generator().manual_seed(1))


def _compared(model: nn.Module) -> tuple[Value, ...]:
    found, runs = iw.predict(model, _batch(), plan=iw.plan(model, "kaiming")), []
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        runs.append(iw.measure(model, _batch(), seed=seed).rows)
    return paired(found.rows, runs)[0]


@pytest.mark.parametrize("name", OWN)
def test_against_draws(name: str) -> None:
    """Within 2 standard errors, of 3 to 10 %, and a tenth forward, a fifth backward; all of these were unknown."""
    torch.manual_seed(0)
    for value in _compared(OWN[name]()):
        assert value.predicted is not None, value
        bar = (0.1 if value.direction == "forward" else 0.2) + 2 * value.standard_error
        assert value.predicted == pytest.approx(value.measured, rel=bar), value


def test_sums_of_scores_that_are_hardly_ever_0() -> None:
    """The first row's is |φ(q)|², 0 where all of φ(q) is; drawn as two, gradients of queries were 67 % too large."""
    torch.manual_seed(0)
    values = _compared(nn.Sequential(nn.Linear(WIDTH, WIDTH), _Called(_positive), nn.Linear(WIDTH, 4)))
    assert all(v.predicted is not None for v in values if v.direction == "forward")
    for value in (v for v in values if v.predicted is not None):
        assert value.predicted == pytest.approx(value.measured, rel=0.2 + 2 * value.standard_error), value


class _OfImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).flatten(2)
        return torch.softmax(h.mT @ h, -1)


def test_of_convolutions_they_are_unknown() -> None:
    found = iw.predict(_OfImages(), torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1)))
    assert found.rows[-1]["forward_rms"] is None
    assert any(_WHY in note for note in found.notes)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_rows_times_themselves_is_known(name: str) -> None:
    found = iw.predict(_Layer(OTHERS[name]), _batch(4))
    assert found.rows[-1]["forward_rms"] is not None
    assert not any(_WHY in note or "without a law" in note for note in found.notes)
