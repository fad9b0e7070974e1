"""Products of two images of one value's rows, averaged over rows, against measured ones over 48 draws of the weights.

Errors of the measured rms are 1 to 1.5 %. As products of independents the averages were 8 to 15 % too small.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

import initwell as iw

SEEDS, WIDTH = 48, 32


class _Product(nn.Module):
    def __init__(self, inner: Callable[[Tensor], Tensor], gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.i, self.a, self.b = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.inner, self.gate = inner, gate

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.i(x))
        product: Tensor = self.gate(self.a(h)) * self.b(h)
        return product.mean(1)


def _same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(("inner", "gate"), [(_same, _same), (_same, silu), (relu, _same)])
def test_an_average_over_rows(inner: Callable[[Tensor], Tensor], gate: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(16, 10, WIDTH, generator=torch.Generator().manual_seed(1))
    model = _Product(inner, gate)
    found = iw.predict(model, x, plan=iw.plan(model, "xavier")).rows[-1]["forward_rms"]
    squares = 0.0
    for seed in range(SEEDS):
        iw.init_(model, "xavier", seed=seed)
        with torch.no_grad():
            squares += float(model(x).square().mean()) / SEEDS
    assert found == pytest.approx(squares**0.5, rel=0.035)


class _Pooled(nn.Module):
    """Two layers of one value, multiplied and averaged over rows or places."""

    def __init__(self, layers: tuple[nn.Module, nn.Module], inner: nn.Module, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.inner, self.gate = nn.ModuleList(layers), inner, gate

    def product(self, h: Tensor) -> Tensor:
        a, b = (layer(h) for layer in self.layers)
        found: Tensor = a * self.gate(b)
        return found

    def forward(self, x: Tensor) -> Tensor:
        product = self.product(self.inner(x))
        return product.flatten(2).mean(2) if x.dim() == 4 else product.mean(1)


def _layers(channels: int, taps: int = 0) -> tuple[nn.Module, nn.Module]:
    if taps:
        one, two = (nn.Conv2d(channels, WIDTH, taps, padding=taps // 2, bias=False) for _ in range(2))
        return one, two
    return nn.Linear(channels, 2 * WIDTH, bias=False), nn.Linear(channels, 2 * WIDTH, bias=False)


FEW: dict[str, tuple[Callable[[], _Pooled], tuple[int, ...]]] = {
    "colours": (lambda: _Pooled(_layers(3, 1), nn.Identity(), _same), (16, 3, 12, 12)),
    "patches": (lambda: _Pooled(_layers(3, 3), nn.Identity(), _same), (16, 3, 12, 12)),
    "rectified": (lambda: _Pooled(_layers(8), nn.Identity(), relu), (16, 49, 8)),
    "silu": (lambda: _Pooled(_layers(8), nn.Identity(), silu), (16, 49, 8)),
}


@pytest.mark.parametrize("name", FEW)
def test_products_and_averages_of_few_channels(name: str) -> None:
    """Products were 4 to 25 % too small, and exact, averages of rectified ones 28 % too large. 32 draws, ±2.7 %."""
    build, shape = FEW[name]
    x, model = torch.randn(shape, generator=torch.Generator().manual_seed(2)), build()
    rows = iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows
    product = next(row["forward_rms"] for row in rows if row["op"] == "aten.mul")
    squares = [0.0, 0.0]
    for seed in range(32):
        iw.init_(model, "kaiming", seed=seed)
        with torch.no_grad():
            made = (model.product(x), model(x))
            squares = [s + float(y.square().mean()) / 32 for s, y in zip(squares, made, strict=True)]
    assert product == pytest.approx(squares[0] ** 0.5, rel=0.06)
    assert rows[-1]["forward_rms"] == pytest.approx(squares[1] ** 0.5, rel=0.1)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.RMSNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(self.norm(x))
        return y


def test_averages_behind_a_normalized_stream_are_approximate() -> None:
    """They are 16 % too large: what normalized rows have in common is not followed in full."""
    model = _Pooled(_layers(WIDTH), nn.Sequential(*[_Block() for _ in range(4)], nn.RMSNorm(WIDTH)), _same)
    x = torch.randn(16, 12, WIDTH, generator=torch.Generator().manual_seed(2))
    assert iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows[-1]["fidelity"] == "approximate"


class _OwnGate(nn.Module):
    """A value times a gate that a layer made of it, averaged over rows or places."""

    def __init__(self, made: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.made, self.layer = made, layer

    def forward(self, x: Tensor) -> Tensor:
        h = self.made(x)
        product: Tensor = h * self.layer(h).sigmoid()
        return product.flatten(2).mean(2) if x.dim() == 4 else product.mean(1)


ROWS, IMAGES = (16, 49, WIDTH), (16, 3, 12, 12)
OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: _OwnGate(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)), ROWS),
    "normalized": (lambda: _OwnGate(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)), ROWS),
    "tanh": (lambda: _OwnGate(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), nn.Linear(WIDTH, WIDTH)), ROWS),
    "channels": (
        lambda: _OwnGate(
            nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)), nn.Conv2d(WIDTH, WIDTH, 1)
        ),
        IMAGES,
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_an_average_of_what_its_own_gate_left(name: str) -> None:
    """It was 13 to 41 % too small, and exact. 24 draws, ±1.6 %; tanh leaves less than is counted, 3.6 %."""
    build, shape = OWN[name]
    x, model = torch.randn(shape, generator=torch.Generator().manual_seed(3)), build()
    found = iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows[-1]
    squares = 0.0
    for seed in range(24):
        iw.init_(model, "kaiming", seed=seed)
        with torch.no_grad():
            squares += float(model(x).square().mean()) / 24
    assert found["forward_rms"] == pytest.approx(squares**0.5, rel=0.07)
    assert found["fidelity"] == ("approximate" if name == "tanh" else "exact")


@pytest.mark.parametrize("layer", [nn.Linear(WIDTH, 1), nn.Sequential(nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH))])
def test_an_average_of_what_another_gate_left_is_approximate(layer: nn.Module) -> None:
    """They are 15 % too small: one number a row, and a gate behind dropout."""
    model = _OwnGate(nn.Linear(WIDTH, WIDTH), layer)
    x = torch.randn(ROWS, generator=torch.Generator().manual_seed(3))
    assert iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows[-1]["fidelity"] == "approximate"


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(64, WIDTH, bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, 64, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        y: Tensor = x + self.out(silu(self.gate(h)) * self.up(h))
        return y


class _Summed(nn.Module):
    """h·(A h) summed over rows, or in turn."""

    def __init__(self, made: nn.Module, running: bool) -> None:
        super().__init__()
        self.made, self.layer, self.running = made, nn.Linear(WIDTH, WIDTH), running

    def forward(self, x: Tensor) -> Tensor:
        h = self.made(x)
        product: Tensor = h * self.layer(h)
        return product.cumsum(1) if self.running else product.mean(1)


BENT: dict[str, Callable[[], nn.Module]] = {
    "gated stream": lambda: nn.Sequential(_Gated(), _Gated(), nn.LayerNorm(WIDTH)),
    "gated stream, no norm": lambda: nn.Sequential(_Gated(), _Gated()),
    "relu": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.LayerNorm(WIDTH)),
    "hidden layer": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)),
}


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("name", BENT)
def test_sums_of_rows_that_bent_ones_made_are_approximate(name: str, running: bool) -> None:
    """They are 17, 14, 5 and 8 % too large, and were exact (40 draws, ±1 %): functions and products pass less on."""
    model = _Summed(BENT[name](), running)
    x = torch.randn(16, 12, WIDTH, generator=torch.Generator().manual_seed(2))
    assert iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows[-1]["fidelity"] == "approximate"


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(WIDTH)])
def test_sums_of_rows_that_only_layers_made_are_exact(norm: nn.Module) -> None:
    """They are right to 1.3 %, what 40 draws show."""
    model = _Summed(nn.Sequential(nn.Linear(WIDTH, WIDTH), norm), running=False)
    x = torch.randn(16, 12, WIDTH, generator=torch.Generator().manual_seed(2))
    assert iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows[-1]["fidelity"] == "exact"


class _Gates(nn.Module):
    def __init__(self, channels: int, taps: int, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.gate = nn.ModuleList(_layers(channels, taps)), gate

    def forward(self, x: Tensor) -> Tensor:
        a, b = (layer(x) for layer in self.layers)
        product: Tensor = a * self.gate(b)
        return product


@pytest.mark.parametrize(("taps", "gate"), [(1, _same), (1, relu), (1, torch.tanh), (3, _same)])
def test_products_of_sums_of_products_are_approximate(taps: int, gate: Callable[[Tensor], Tensor]) -> None:
    """Two gates on images of 3 channels: 47, 58 and 12 % too small, and 15 % too large (tanh), and were exact."""
    model = nn.Sequential(_Gates(3, taps, gate), _Gates(WIDTH, taps, gate))
    x = torch.randn(16, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    rows = iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows
    assert [row["fidelity"] for row in rows if row["op"] == "aten.mul"][-1] == "approximate"


@pytest.mark.parametrize(
    ("taps", "layer", "fidelity"), [(1, nn.Tanh(), "approximate"), (1, nn.ReLU(), "exact"), (3, nn.Tanh(), "exact")]
)
def test_functions_of_few_channels(taps: int, layer: nn.Module, fidelity: str) -> None:
    """tanh of sums of 3 terms is 6.3 ± 0.7 % too large (16 draws), and was exact; ReLU and 27 terms are right."""
    model = nn.Sequential(nn.Conv2d(3, WIDTH, taps), layer)
    x = torch.randn(16, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    rows = iw.predict(model, x, plan=iw.plan(model, "kaiming")).rows
    assert rows[-1]["fidelity"] == fidelity
